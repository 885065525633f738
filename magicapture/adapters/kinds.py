"""What a file that we cannot read is, told by its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .families import has_known_transformer

# A pattern of the key's beginning, and what a file with such a key is; the first that fits counts.
_KINDS = (
    # Whole models.
    (r"model\.diffusion_model\.|cond_stage_model\.|first_stage_model\.", "a whole checkpoint"),
    (r"control_model\.|controlnet_|control_add_embedding\.|lllite_", "a ControlNet"),
    (r"image_proj\.|ip_adapter\.", "an IP-Adapter"),
    (r".*motion_modules", "a motion module (AnimateDiff)"),
    (r"(encoder|decoder)\.(conv_in|mid|down|up)|(post_)?quant_conv\.", "a VAE"),
    (r"(conv_in|time_embedding\.linear_1|time_embed\.0|input_blocks\.0\.0)\.weight$", "a UNet"),
    (r"(text_model\.)?(embeddings\.|encoder\.layers\.\d+\.\w+\.\w+\.weight$)", "a text encoder"),
    # Other forms of adapters.
    (r".*[._]hada_w", "a LoHa (LyCORIS)"),
    (r".*[._]lokr_", "a LoKr (LyCORIS)"),
    (r".*[._](dora_scale|lora_magnitude_vector)", "a DoRA"),
    (r".*[._](oft_|boft_)", "an OFT (orthogonal finetuning)"),
    (r".*[._]lora_mid\.", "a LoCon in Tucker's decomposition (LyCORIS)"),
    (r".*[._][ab][12]\.weight$", "a GLoRA (LyCORIS)"),
    (r".*[._](on_input|ia3_\w)$", "an (IA)3 (LyCORIS)"),
    (r".*\.(diff|diff_b|w_norm|b_norm|set_weight)$", "a full-rank difference of weights"),
    (r"lycoris_", "a LyCORIS network"),
)
_FAMILIES = (
    (r".*(double|single)_(transformer_)?blocks", "a LoRA for Flux or HunyuanVideo"),
    (r".*joint_blocks|lora_te3_", "a LoRA for Stable Diffusion 3 or Flux"),
    (r"lora_prior_", "a LoRA for Stable Cascade"),
    (r"(lora_)?transformer[._]", "a LoRA for a transformer (Flux, PixArt, ...)"),
    (r"transformer_blocks\.", "a LoRA for a transformer (Stable Diffusion 3, PixArt, ...)"),
    (r"(lora_unet_|diffusion_model\.)_?(blocks|layers|transformer_blocks)[._]\d",
     "a LoRA for a transformer (Wan, Lumina, Qwen-Image, ...)"),
    (r"(t5(?!xxl$)|llama|gemma|qwen)\w*$", "an embedding for a text encoder that is not CLIP"),
)  # fmt: skip


def refuse_others(entries: Mapping[str, Any], path: Path, *, ours: bool = False) -> None:
    """Raise InputError, naming what it is, for a file of a known kind that cannot be read.

    LoRAs and embeddings for the families that we have pass, and so does what is unknown. ours:
    MagiCapture wrote the file, for a family that its metadata names.
    """
    known = ours or has_known_transformer(entries)
    for pattern, what in (*_KINDS, *(() if known else _FAMILIES)):
        found = next((key for key in entries if re.match(pattern, key)), None)
        if found is not None:
            raise InputError(
                f"{path} is {what}: it holds {found:.120}. Expected a LoRA of linear layers or an "
                "embedding, for Stable Diffusion 1.x, 2.x or XL, for Flux.1, Z-Image, Qwen-Image "
                "or Krea 2."
            )
