"""Tensor files of any kind into tensors and text, and a LoRA's tensors into layers."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from .. import weight_files
from ..errors import InputError, StorageError
from ..lora import LoraWeights
from .keys import Key, parse

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
