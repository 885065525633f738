"""The LoRA file of kohya's sd-scripts, which ComfyUI, A1111 and diffusers all load."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ..families import FAMILIES
from .adapter import ENCODERS, Adapter
from .keys import flat_name
from .metadata import architecture, describe


def prefixes(family: str) -> dict[str, str]:
    """How the keys of each part start: one text encoder is "te", two are "te1" and "te2"."""
    encoders = ENCODERS[family]
    numbers = [""] if len(encoders) == 1 else [str(n + 1) for n in range(len(encoders))]
    texts = {e: f"lora_te{n}_" for e, n in zip(encoders, numbers, strict=True)}
    return {"unet": "lora_unet_", **texts}


def to_kohya(adapter: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The adapter's LoRA by kohya's keys; alpha stays float32."""
    starts = prefixes(adapter.family)
    tensors = {}
    for key, weights in adapter.lora.items():
        part, _, layer = key.partition(".")
        name = starts[part] + flat_name(layer)
        tensors[f"{name}.lora_down.weight"] = weights.down.to("cpu", dtype)
        tensors[f"{name}.lora_up.weight"] = weights.up.to("cpu", dtype)
        tensors[f"{name}.alpha"] = torch.tensor(float(weights.alpha))
    return tensors


def kohya_metadata(adapter: Adapter, title: str) -> dict[str, str]:
    """Our facts, the model metadata standard's, and those of kohya's that other tools show."""
    sizes = Counter((weights.rank, weights.alpha) for weights in adapter.lora.values())
    rank, alpha = sizes.most_common(1)[0][0] if sizes else (0, 0.0)
    return {
        **describe(adapter, title, "lora"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": FAMILIES[adapter.family].base_version,
        "ss_v2": str(adapter.family == "sd2"),
        "ss_sd_model_name": adapter.info.get("base", architecture(adapter)),
        "ss_output_name": title,
    }
