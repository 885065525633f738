"""The parts of a model, wherever they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backbone import Family


@dataclass
class Parts:
    """The networks of a model and what goes with them, text encoders and tokenizers by their keys.

    scheduler: the config of a scheduler of diffusers.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoders: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Any]
    scheduler: Mapping[str, Any]


def vae_dtype(family: Family, dtype: torch.dtype) -> torch.dtype:
    """What a VAE computes in beside a model in `dtype`; XL's overflows in float16."""
    return torch.float32 if family == "sdxl" and dtype == torch.float16 else dtype
