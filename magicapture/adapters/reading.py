"""Tensor files of any kind into tensors and text."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError, StorageError

PICKLED = (".pt", ".bin", ".pth")

_BACKUP = re.compile(r"\.bak\d+$")

AnyPath: TypeAlias = str | os.PathLike[str]
"""A path as a caller gives it."""


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a file's entries and its metadata; only a safetensors file has any.

    Files of torch (.pt, .bin, .pth) are read with weights_only, so that none can run code. Raises
    StorageError for a file that is missing, empty or damaged, InputError for one of another kind.
    """
    if not path.is_file():
        raise StorageError(f"There is no file {path}; check its name and folder.")
    if not path.stat().st_size:
        raise StorageError(f"{path} is empty; save or download it again.")
    if _BACKUP.sub("", path.name.lower()).endswith(".safetensors"):
        return _read_safetensors(path)
    if path.suffix.lower() in PICKLED:
        return _read_pickled(path), {}
    raise InputError(
        f"{path} is not a LoRA or embedding; expected a file ending in .safetensors, "
        f"{', '.join(PICKLED)}."
    )


def read_metadata(path: Path) -> dict[str, str]:
    """A safetensors file's metadata, without its tensors; empty for any other or damaged file."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} is damaged or not a safetensors file ({error}); save or download it again."
        ) from error


def _read_pickled(path: Path) -> dict[str, Any]:
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, and could run code when opened; it was not opened. "
            "Ask for a .safetensors file instead."
        ) from error
    except Exception as error:  # the unpickler raises almost anything on damaged bytes
        raise StorageError(
            f"{path} is damaged or not a file of torch's ({type(error).__name__}: {error}); "
            "download it again."
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise InputError(f"{path} holds a {type(entries).__name__}; expected named tensors.")
    return entries
