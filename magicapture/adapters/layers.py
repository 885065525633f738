"""A LoRA file's tensors put together into layers, and checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..lora import LoraWeights
from .keys import Key, parse

LIMIT = torch.finfo(torch.float16).max
"""The largest number of float16 (65504), in which most models compute."""


def gather(tensors: Mapping[str, Any], source: Path) -> dict[str, LoraWeights]:
    """Put a LoRA file's tensors together, by "<part>.<layer>" as `Adapter.lora` has them.

    A 1x1 convolution's weights lose their last two axes; a missing alpha is the rank. Raises
    InputError for anything that is not a LoRA of linear layers.
    """
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    strange = []
    for name, tensor in tensors.items():
        key = parse(name)
        if key is None or not _fits(key, tensor) or key.tensor in layers[f"{key.part}.{key.layer}"]:
            strange.append(name)
        else:
            layers[f"{key.part}.{key.layer}"][key.tensor] = tensor
    strange += [layer for layer, of in layers.items() if of and not {"down", "up"} <= of.keys()]
    if strange or not layers:
        examples = ", ".join(f"{name:.120}" for name in strange[:3]) or "nothing"
        raise InputError(
            f"{source} is not a LoRA that can be read: it holds {examples} ({len(strange)} such "
            "entries). Expected one lora_down / lora_up pair for each of some linear layers; 3x3 "
            "convolutions are not supported."
        )
    return {layer: _weights(layer, of, source) for layer, of in layers.items()}


def _fits(key: Key, tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.is_complex():
        return False
    if key.tensor == "alpha":
        return tensor.numel() == 1
    matrix = tensor.ndim == 2 or (tensor.ndim == 4 and tensor.shape[2:] == (1, 1))
    return matrix and tensor.is_floating_point()


def _weights(layer: str, of: Mapping[str, Tensor], source: Path) -> LoraWeights:
    down, up = of["down"].float().flatten(1), of["up"].float().flatten(1)
    alpha = float(of["alpha"]) if "alpha" in of else float(len(down))
    try:
        return LoraWeights(down, up, alpha)
    except InputError as error:
        raise InputError(f"{source}, layer {layer}: {error}") from error


def check_finite(lora: Mapping[str, LoraWeights], source: Path) -> None:
    """Raise InputError, naming the layer, where a LoRA would turn pictures black.

    That is one with NaN or infinite numbers, or one by which an input of values within 1 could
    move a layer's output beyond LIMIT. LoRAs in use stay a hundred times below it.
    """
    for layer, weights in lora.items():
        for name, values in (("down", weights.down), ("up", weights.up)):
            if not values.isfinite().all():
                raise InputError(
                    f"{source} holds NaN or infinite numbers in lora_{name} of {layer}; train or "
                    "download it again."
                )
        reach = abs(weights.alpha) / weights.rank * _reach(weights)
        if not reach <= LIMIT:
            raise InputError(
                f"{source} holds numbers that are too large in {layer}: with its alpha of "
                f"{weights.alpha:g} it moves values of size 1 by up to {reach:.3g}, and float16 "
                f"ends at {LIMIT:g}. Train or download it again."
            )


def _reach(weights: LoraWeights) -> float:
    """The most that up @ down, given values within 1, puts out."""
    return float((weights.up.abs().double() @ weights.down.abs().double().sum(1)).max())
