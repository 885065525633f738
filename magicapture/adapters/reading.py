"""Tensor files of any kind into tensors and text, and a LoRA's tensors into layers."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError, StorageError
from ..lora import LoraWeights
from .keys import Key, parse

PICKLED = (".pt", ".bin", ".pth")

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
    if path.suffix.lower() == ".safetensors":
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


def gather(tensors: Mapping[str, Any], source: Path) -> dict[str, LoraWeights]:
    """Put a LoRA file's tensors together, by "<part>.<layer>" as `Adapter.lora` has them.

    A 1x1 convolution's weights lose their last two axes; a missing alpha is the rank. Raises
    InputError for anything that is not a LoRA of linear layers.
    """
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    strange = []
    for name, tensor in tensors.items():
        key = parse(name)
        if key is None or not _fits(key, tensor):
            strange.append(name)
        else:
            layers[f"{key.part}.{key.layer}"][key.tensor] = tensor
    strange += [layer for layer, of in layers.items() if not {"down", "up"} <= of.keys()]
    if strange or not layers:
        examples = ", ".join(strange[:3]) or "nothing"
        raise InputError(
            f"{source} is not a LoRA that can be read: it holds {examples} ({len(strange)} such "
            "entries). Expected lora_down / lora_up pairs for linear layers of Stable Diffusion; "
            "LoHa, LoKr, DoRA and 3x3 convolutions are not supported."
        )
    return {layer: _weights(of) for layer, of in layers.items()}


def _fits(key: Key, tensor: Any) -> bool:
    if not isinstance(tensor, Tensor):
        return False
    if key.tensor == "alpha":
        return tensor.numel() == 1
    return tensor.ndim == 2 or (tensor.ndim == 4 and tensor.shape[2:] == (1, 1))


def _weights(of: Mapping[str, Tensor]) -> LoraWeights:
    down, up = of["down"].float().flatten(1), of["up"].float().flatten(1)
    alpha = float(of["alpha"]) if "alpha" in of else float(len(down))
    return LoraWeights(down, up, alpha)
