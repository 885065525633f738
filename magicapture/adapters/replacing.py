"""Which files an adapter may replace, and whether two of them hold the same."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from .metadata import TOKEN, TOKENS, is_ours
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


def same_tensors(one: Path, other: Path) -> bool:
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
