"""Names and writes that cannot leave their folder, lose an old file or leave half a new one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError, MagiCaptureError, StorageError

MAX_NAME = 120
"""Longest name in bytes; leaves room for endings and for a token's name below the usual 255."""

TEMPORARY = ".tmp-magicapture"
"""Ending of a file that is being written; no loader lists it."""

_OURS = re.compile(rf"\.[0-9a-f]+-(?P<host>[0-9a-f]+)-(?P<process>[0-9]{{1,9}}){TEMPORARY}")
_ABANDONED = 3600.0
"""Seconds after which a temporary file of another machine's process is taken for a leftover."""

_FORBIDDEN = frozenset('/\\:*?"<>|')
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])


def safe_name(name: str, what: str) -> str:
    """A user's name for a file or folder, stripped of outer spaces, fit for every system.

    `what` names it in the message ("output name"). Raises InputError for an empty name, a path,
    "..", a control character, a name reserved by Windows, or more than MAX_NAME bytes.
    """
    stripped = name.strip()
    problem = _problem(stripped)
    if problem:
        raise InputError(
            f"The {what} {name!r} {problem}; expected a plain name such as 'ada-film', without a "
            "folder."
        )
    return stripped


def safe_path(name: str, what: str, ending: str) -> str:
    """A user's name for a file to be written, which may lie in sub-folders ("people/ada").

    `ending` (".safetensors") is taken off where the name has it already. Raises InputError for a
    name of which any part would not be a `safe_name`.
    """
    plain = name.strip()
    if plain.lower().endswith(ending):
        plain = plain[: -len(ending)]
    parts = [part.strip() for part in re.split(r"[/\\]", plain)]
    problem = next(filter(None, map(_problem, parts)), None)
    if problem:
        raise InputError(
            f"The {what} {name!r} {problem}; expected a name such as 'ada-film', or with a "
            "sub-folder 'people/ada-film'."
        )
    return "/".join(parts)


def _problem(name: str) -> str | None:
    if not name:
        return "is empty or has an empty part"
    bad = sorted({c for c in name if c in _FORBIDDEN or not c.isprintable()})
    if bad:
        return f"contains {' '.join(map(repr, bad))}"
    if name.startswith(".") or name.endswith("."):
        return "starts or ends with a dot"
    if name.split(".")[0].lower() in _RESERVED:
        return "is reserved by Windows"
    if len(name.encode()) > MAX_NAME:
        return f"is {len(name.encode())} bytes long (at most {MAX_NAME})"
    return None


def inside(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """The absolute path of `name` in `folder`, links followed; sub-folders are allowed.

    Raises StorageError when the path would leave the folder.
    """
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if path == root or not path.is_relative_to(root):
        raise StorageError(
            f"{os.fspath(name)!r} is not inside {root}; give a name without '..' that stays in "
            "that folder."
        )
    return path


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one move.

    The temporary file ends in TEMPORARY, so `write` must not go by the suffix. Missing folders are
    made, and leftovers of processes that were killed are removed. Whatever goes wrong, the old file
    stays as it was and no temporary file remains; a failed write raises StorageError.
    """
    path = Path(path)
    temporary = _temporary(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    except MagiCaptureError:
        raise
    # The writers of safetensors and torch report a full disk in types of their own.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StorageError(_message(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(folder: Path) -> Path:
    """A new name that tells which process writes the file."""
    return folder / f".{secrets.token_hex(4)}-{_host()}-{os.getpid()}{TEMPORARY}"


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _remove_leftovers(folder: Path) -> None:
    for file in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            if _is_leftover(file):
                file.unlink()


def _is_leftover(file: Path) -> bool:
    """Whether the process that began the file is gone, or must be by now."""
    match = _OURS.fullmatch(file.name)
    if match and match["host"] == _host() and not _runs(int(match["process"])):
        return True
    return time.time() - file.stat().st_mtime > _ABANDONED


def _runs(process: int) -> bool:
    if os.name == "nt":  # there, os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _message(path: Path, error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in _FULL
    full = full or any(f"code: {code}," in str(error) for code in _FULL)
    if full:
        return (
            f"The disk is full: {path} could not be written, and what was there before is "
            "unchanged. Free some space or choose another folder, then save again."
        )
    return (
        f"{path} could not be written ({error}); what was there before is unchanged. Check that "
        "the folder may be written to."
    )


def check_writable(folder: str | os.PathLike[str], needed: int = 2**20) -> None:
    """Raise StorageError, before any work is spent, where a folder takes no file of `needed` bytes.

    Makes the folder, and writes and removes a small file in it; what was not there before is gone
    again afterwards.
    """
    folder = Path(folder)
    trial, made = _temporary(folder), []
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(bytes(4096))
        _flush(trial)
    except OSError as error:
        reason = "the disk is full" if error.errno in _FULL else str(error)
        raise StorageError(
            f"Nothing can be written to {folder} ({reason}); choose another folder, or free it for "
            "writing."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
            for place in made:
                place.rmdir()
    require_space(folder, needed)


def spare_folders() -> list[Path]:
    """Where to save what its own folder does not take: below the user's home, else temporary."""
    folders = [Path(tempfile.gettempdir())]
    with contextlib.suppress(RuntimeError):  # no home is known
        folders.insert(0, Path.home())
    return [folder / "magicapture-saved" for folder in folders]


def free_space(folder: str | os.PathLike[str]) -> int:
    """Free bytes on the disk that holds `folder`, or that would hold it once it is made."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(folder: str | os.PathLike[str], needed: int) -> None:
    """Raise StorageError when the disk of `folder` has fewer than `needed` bytes free."""
    free = free_space(folder)
    if free < needed:
        raise StorageError(
            f"The disk of {os.fspath(folder)} has {free / 2**20:.0f} MiB free; this needs "
            f"{needed / 2**20:.0f} MiB. Free some space or choose another folder."
        )


def printable(path: str | os.PathLike[str]) -> str:
    """A path as messages show it: what is no text, or breaks the line, becomes a question mark."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in os.fspath(path))
