"""Writing several files as one: nothing is lost that was there, and a failure undoes the rest."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..files import atomic_write
from .metadata import TOKEN, TOKENS, is_ours
from .reading import read_metadata

KEPT = 3
"""Backups kept of each file; older ones go."""


def check_replaceable(path: Path, *, replace: bool = True) -> None:
    """Raise InputError where a file must not be replaced: not MagiCapture's, or not to be."""
    if not os.path.lexists(path):
        return
    if not path.is_file() or not is_ours(read_metadata(path)):
        raise InputError(
            f"{path} is there already and was not written by MagiCapture, so it is left alone; "
            "choose another name, or move it away."
        )
    if not replace:
        raise InputError(f"{path} is there already; choose another name, or allow to replace it.")


class Kept(NamedTuple):
    """The backups that `write_all` made, and the old ones that went for them."""

    backups: tuple[Path, ...]
    removed: tuple[Path, ...]


def write_all(files: Mapping[Path, Callable[[Path], object]]) -> Kept:
    """Write each file through its function; earlier ones are kept as backups.

    An earlier `ada.safetensors` is kept as `ada.safetensors.bak1`, then `.bak2`: endings that no
    loader lists. One with the same tensors is not kept, and of each file the KEPT newest are. When
    one write fails, every file is as it was before; raises StorageError.
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
            if _same(path, backup):
                backup.unlink()
            for old in backups_of(path)[KEPT:]:
                old.unlink()
                removed.append(old)
    return Kept(tuple(backup for backup in backups.values() if backup.exists()), tuple(removed))


def backups_of(path: Path) -> list[Path]:
    """The numbered backups of a file, the newest first."""
    pattern = re.compile(re.escape(path.name) + r"\.bak([1-9][0-9]{0,8})")
    numbered = [
        (int(match[1]), file)
        for file in (path.parent.iterdir() if path.parent.is_dir() else ())
        if (match := pattern.fullmatch(file.name))
    ]
    return [file for _, file in sorted(numbered, reverse=True)]


def _keep(path: Path) -> Path:
    """A copy of the file under the next number; the file itself stays in place."""
    newest = next(iter(backups_of(path)), None)
    number = 1 if newest is None else int(newest.suffix.removeprefix(".bak")) + 1
    backup = path.with_name(f"{path.name}.bak{number}")
    atomic_write(backup, lambda temporary: shutil.copyfile(path, temporary))
    return backup


def _same(one: Path, other: Path) -> bool:
    """Whether two of our files hold the same tensors; two LoRAs, for the same tokens."""
    first, second = (read_metadata(path) for path in (one, other))
    if TOKEN not in first and first.get(TOKENS) != second.get(TOKENS):
        return False
    try:
        with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
            keys = set(a.keys())
            return keys == set(b.keys()) and all(
                torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in keys
            )
    except SafetensorError:
        return False
