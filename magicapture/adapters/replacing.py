"""Writing several files as one: nothing is lost that was there, and a failure undoes the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from ..errors import InputError
from ..files import atomic_write
from .metadata import is_ours
from .reading import read_metadata


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


def write_all(files: Mapping[Path, Callable[[Path], object]]) -> list[Path]:
    """Write each file through its function and return the backups made of earlier ones.

    An earlier `ada.safetensors` is kept as `ada.safetensors.bak1`, then `.bak2`: endings that no
    loader lists. When one write fails, every file is as it was before; raises StorageError.
    """
    backups = []
    with ExitStack() as undo:
        for path, write in files.items():
            existed = path.exists()
            if existed:
                backups.append(_keep(path))
                undo.callback(os.replace, backups[-1], path)
            atomic_write(path, write)
            if not existed:
                undo.callback(path.unlink)
        undo.pop_all()
    return backups


def _keep(path: Path) -> Path:
    """A numbered copy of the file, which itself stays in place."""
    numbered = (path.with_name(f"{path.name}.bak{n}") for n in count(1))
    backup = next(candidate for candidate in numbered if not os.path.lexists(candidate))
    atomic_write(backup, lambda temporary: shutil.copyfile(path, temporary))
    return backup
