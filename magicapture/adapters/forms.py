"""The form of a family's LoRA files: kohya's for UNets, diffusers' for transformers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..families import FAMILIES
from ..parts import scaled
from .adapter import Adapter
from .diffusers import to_diffusers
from .kohya import to_kohya


def to_lora(adapter: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The adapter's LoRA as its file holds it, by keys that its family's stock loaders know."""
    if _has_alphas(adapter):
        return to_kohya(adapter, dtype)
    return to_diffusers(adapter.lora, dtype)


def held(adapter: Adapter) -> Adapter:
    """The adapter as it is read from its file: diffusers' form has alpha / rank in up."""
    if _has_alphas(adapter):
        return adapter
    return replace(adapter, lora={key: scaled(weights) for key, weights in adapter.lora.items()})


def _has_alphas(adapter: Adapter) -> bool:
    return FAMILIES[adapter.family].network == "unet"
