"""Writing several files as one: nothing is lost that was there, and a failure undoes the rest."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from .files import atomic_write

KEPT = 3
"""Backups kept of each file; older ones go."""

_BACKUP = re.compile(r"(?P<name>.+)\.bak(?P<number>[1-9][0-9]{0,8})")


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return filecmp.cmp(one, other, shallow=False)


class Kept(NamedTuple):
    """The backups that `write_all` made, and the old ones that went for them."""

    backups: tuple[Path, ...]
    removed: tuple[Path, ...]


def write_all(
    files: Mapping[Path, Callable[[Path], object]],
    same: Callable[[Path, Path], bool] = same_bytes,
) -> Kept:
    """Write each file through its function; earlier ones are kept as backups.

    An earlier `ada.safetensors` is kept as `ada.safetensors.bak1`, then `.bak2`: endings that no
    loader lists. One that is the `same` as the new is not kept, and of each file the KEPT newest
    are. When one write fails, every file is as it was before; raises StorageError.
    """
    backups: dict[Path, Path] = {}
    with ExitStack() as undo:
        for path, write in files.items():
            if path.exists():
                backups[path] = _keep(path)
                undo.callback(os.replace, backups[path], path)
                atomic_write(path, write)
            else:
                atomic_write(path, write)
                undo.callback(path.unlink)
        undo.pop_all()
    removed = []
    for path, backup in backups.items():
        with suppress(OSError):
            if same(path, backup):
                backup.unlink()
            for old in backups_of(path)[KEPT:]:
                old.unlink()
                removed.append(old)
    return Kept(tuple(backup for backup in backups.values() if backup.exists()), tuple(removed))


def is_backup(file: Path) -> bool:
    """Whether a file's name is a backup's."""
    return _BACKUP.fullmatch(file.name) is not None


def backups_of(path: Path) -> list[Path]:
    """The numbered backups of a file, the newest first."""
    numbered = [
        (int(match["number"]), file)
        for file in (path.parent.iterdir() if path.parent.is_dir() else ())
        if (match := _BACKUP.fullmatch(file.name)) and match["name"] == path.name
    ]
    return [file for _, file in sorted(numbered, reverse=True)]


def _keep(path: Path) -> Path:
    """A copy of the file under the next number; the file itself stays in place."""
    newest = next(iter(backups_of(path)), None)
    number = 1 if newest is None else int(newest.suffix.removeprefix(".bak")) + 1
    backup = path.with_name(f"{path.name}.bak{number}")
    atomic_write(backup, lambda temporary: shutil.copyfile(path, temporary))
    return backup
