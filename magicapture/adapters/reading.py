"""Tensor files of any kind into tensors and text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

from .. import weight_files
from ..errors import StorageError

AnyPath: TypeAlias = str | os.PathLike[str]
"""A path as a caller gives it."""


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a file's entries and its metadata; only a safetensors file has any.

    Raises StorageError for a file that is missing, empty or damaged, InputError for one of another
    kind or that could run code.
    """
    return weight_files.read_entries(path), weight_files.read_metadata(path)


def read_metadata(path: Path) -> dict[str, str]:
    """A safetensors file's metadata, without its tensors; empty for any other or damaged file."""
    try:
        return weight_files.read_metadata(path)
    except StorageError:
        return {}
