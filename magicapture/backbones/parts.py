"""The parts of a model, wherever they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..families import FAMILIES, FamilyName


@dataclass
class Parts:
    """The networks of a model and what goes with them, text encoders and tokenizers by their keys.

    scheduler: the config of a scheduler of diffusers.
    """

    family: FamilyName
    unet: nn.Module
    vae: nn.Module
    text_encoders: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Any]
    scheduler: Mapping[str, Any]


def in_float32(network: nn.Module) -> set[str]:
    """The names of the parameters that diffusers keeps in float32 whatever a network computes in.

    Krea 2's norms, which it adds 1 to.
    """
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    return {name for name, _ in network.named_parameters() if kept & set(name.split("."))}


def vae_dtype(family: FamilyName, dtype: torch.dtype) -> torch.dtype:
    """What a VAE computes in beside a model in `dtype`; XL's overflows in float16."""
    half = FAMILIES[family].half_vae
    return torch.float32 if dtype == torch.float16 and not half else dtype
