"""The LoRA file of diffusers, which ComfyUI loads for every joint-attention network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..lora import LoraWeights
from ..parts import scaled

_PREFIXES = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def to_diffusers(
    lora: Mapping[str, LoraWeights], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A LoRA by diffusers' keys, `<part>.<layer>.lora_A.weight` and `.lora_B.weight`.

    lora: by "<part>.<layer>" as in `Adapter.lora`; a joint-attention network's part is
    "transformer". The form has no alpha: alpha / r is multiplied into B.
    """
    tensors = {}
    for key, weights in lora.items():
        part, _, layer = key.partition(".")
        name = f"{_PREFIXES.get(part, part)}.{layer}"
        tensors[f"{name}.lora_A.weight"] = weights.down.to("cpu", dtype)
        tensors[f"{name}.lora_B.weight"] = scaled(weights).up.to("cpu", dtype)
    return tensors
