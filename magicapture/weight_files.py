"""The one reader of weight files: tensors and text, never code.

A .safetensors file can hold nothing else. The other endings are pickles, which can run code unless
torch itself holds them to weights; TorchScript holds code by its nature and is refused here.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from .errors import InputError, StorageError
from .memory import refuse_large

SAFETENSORS = ".safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of torch's own files, which are pickles inside."""

_SAFE_PICKLES = "2.6"
"""The first torch whose weights_only keeps its word: up to 2.5.1 it runs code (CVE-2025-32434)."""

_PICKLE_STARTS = (b"PK", b"\x80")  # torch's zip, and the bare pickle it wrote before
_BACKUP = re.compile(r"\.bak\d+$")
_WRAPPERS = 4
"""How deep a state dict may lie inside others; a file can hold a dict that contains itself."""


def read_entries(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """What a weight file holds, by name, on the CPU: tensors, and of a pickle also plain values.

    mapped: a pickle's tensors are read when they are used, as a .safetensors file's always are.
    Raises StorageError for a file that is missing or damaged, InputError for one with another
    ending or with more than tensors in it, and for any pickle below torch 2.6.
    """
    path = Path(path)
    _require_file(path)
    suffix = ending(path)
    if may_hold_code(path):
        raise InputError(
            f"{path} is TorchScript, which runs code when it is loaded; it was not opened. "
            "Expected weights alone; take a .safetensors file."
        )
    if suffix == SAFETENSORS:
        entries = _from_safetensors(path)
    elif suffix in PICKLES:
        entries = _from_pickle(path, mapped)
    else:
        raise InputError(
            f"{path} cannot be read as weights; expected a file ending in {SAFETENSORS}, "
            f"{', '.join(PICKLES)}."
        )
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise InputError(f"{path} holds a {type(entries).__name__}; expected named tensors.")
    _require_values(entries, path)
    return entries


def read_tensors(path: str | Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """The tensors of a weight file, without the "state_dict" that training programs wrap around.

    mapped and what is raised: as for `read_entries`; InputError as well where there are none.
    """
    entries = read_entries(path, mapped=mapped)
    for _ in range(_WRAPPERS):
        if not isinstance(entries.get("state_dict"), dict):
            break
        entries = entries["state_dict"]
    tensors = {key: v for key, v in entries.items() if isinstance(key, str) and torch.is_tensor(v)}
    if not tensors:
        raise InputError(f"{path} holds no weights of a network; expected named tensors.")
    _require_values(tensors, Path(path))
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """A .safetensors file's metadata, without reading its tensors; empty for a pickle.

    Raises StorageError for a file that is missing or damaged.
    """
    from safetensors import safe_open

    path = Path(path)
    _require_file(path)
    if ending(path) != SAFETENSORS:
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # safetensors' own type, or the system's
        refuse_large(path, error)
        _refuse_damaged(path)


def ending(path: Path) -> str:
    """A weight file's ending in small letters, of a backup (.bak1) that of what it is of."""
    return Path(_BACKUP.sub("", path.name.lower())).suffix


def may_hold_code(path: str | Path) -> bool:
    """Whether a file is TorchScript by its content, whatever its ending: loading it runs code."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name.split("/")[1:] for name in archive.namelist()]
    except Exception:  # zipfile raises almost anything on damaged bytes; torch then refuses them
        return False
    return any(path[:1] in (["code"], ["constants.pkl"]) for path in inside)


def difference(expected: nn.Module | Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """How weights differ from a network's in names and shapes, in words; empty where they fit."""
    own = expected.state_dict() if isinstance(expected, nn.Module) else expected
    missing, strange = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = {k: (tuple(weights[k].shape), tuple(v.shape)) for k, v in own.items() if k in weights}
    wrong = [key for key, (came, wanted) in shapes.items() if came != wanted]
    words = []
    if missing:
        words.append(f"lacks {len(missing)} of its weights, such as {missing[0]}")
    if strange:
        words.append(f"holds {len(strange)} that are unknown, such as {strange[0]}")
    if wrong:
        came, wanted = shapes[wrong[0]]
        words.append(f"has {len(wrong)} of other shapes: {wrong[0]} is {came}, expected {wanted}")
    return "; ".join(words)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise StorageError(f"There is no file {path}; check its name and folder.")
    if not _head(path):
        raise StorageError(f"{path} is empty; save or download it again.")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be opened ({error.strerror}); check that it may be read."
        ) from error


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own type; for a number format torch lacks, torch's
        refuse_large(path, error)
        _refuse_damaged(path)


def _from_pickle(path: Path, mapped: bool) -> Any:
    if TorchVersion(torch.__version__) < _SAFE_PICKLES:  # as versions, not as text
        raise InputError(
            f"{path} is a pickle, and in torch {torch.__version__} a pickle can run code even "
            "where only weights are wanted (CVE-2025-32434); it was not opened. Take a "
            ".safetensors file, or update torch to 2.6 or newer."
        )
    if not _head(path).startswith(_PICKLE_STARTS):
        _refuse_damaged(path)
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path)
        )
    # "from None": torch's own words tell the reader how to run the code all the same.
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than weights and could run code when opened, or is damaged; "
            "nothing in it was run. Take a .safetensors file, or download it again."
        ) from None
    except Exception as error:  # the unpickler raises almost anything on damaged bytes
        refuse_large(path, error)
        _refuse_damaged(path)


def _refuse_damaged(path: Path) -> NoReturn:
    """Raise StorageError; says by the first bytes what a file is that was downloaded wrongly."""
    head = _head(path).lstrip()
    if head.startswith(b"version https://git-lfs"):
        what = "a pointer of Git LFS, not the file itself"
    elif head[:1] == b"<":
        what = "a web page, not the file itself"
    else:
        what = "damaged, cut short, or not a file of weights"
    raise StorageError(f"{path} cannot be read: it is {what}. Download or save it again.") from None


def _require_values(entries: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that are not simply there: without values, sparse, quantised, or of few
    values that claim to be many and would fill the memory when they are used."""
    for key, value in entries.items():
        if isinstance(value, Tensor) and (
            value.is_meta
            or value.layout != torch.strided
            or getattr(value, "is_quantized", False)
            or value.untyped_storage().nbytes() < value.nbytes
        ):
            raise InputError(
                f"{path} holds {key!r} without all of its values (a placeholder, or sparse or "
                "quantised weights); expected plain tensors."
            )
        if isinstance(value, dict) and value is not entries:
            _require_values({k: v for k, v in value.items() if torch.is_tensor(v)}, path)
