"""diffusers' configs from the shapes of a single-file checkpoint of SD 1.x or 2.x.

Such a file has the names of the original latent-diffusion code and no config. Reading the
architecture from the weights also lets small models of the same build load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from torch import Tensor

from ..backbone import PredictionType
from ..errors import UnsupportedModelError
from .support import SUPPORTED, refuse

Weights = Mapping[str, Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
TINY_VAE = VAE + "taesd_"

_OTHERS = {
    "conditioner.embedders.": "an SDXL model",
    UNET + "label_emb.": "conditioned on classes or sizes (SDXL, unCLIP, an upscaler)",
    UNET + "joint_blocks.": "a Stable Diffusion 3 model",
    UNET + "double_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "double_blocks.": "a Flux model",
    "lora_unet_": "a LoRA, not a whole model",
    "down_blocks.": "a UNet in diffusers' layout, without text encoder and VAE",
}


def configs(weights: Weights) -> dict[str, dict[str, Any]]:
    """The configs of "unet", "vae" and "text_encoder" that the checkpoint's shapes stand for.

    Raises UnsupportedModelError for another model, or when a part is missing.
    """
    for prefix, kind in _OTHERS.items():
        if any(key.startswith(prefix) for key in weights):
            refuse(kind)
    parts = {
        "UNet": (UNET + "input_blocks.0.0.weight",),
        "VAE": (VAE + "decoder.conv_in.weight", TINY_VAE + "decoder.1.weight"),
        "CLIP text encoder": (
            CLIP + "embeddings.token_embedding.weight",
            OPEN_CLIP + "token_embedding.weight",
        ),
    }
    missing = [part for part, keys in parts.items() if not any(key in weights for key in keys)]
    if missing:
        raise UnsupportedModelError(
            f"The checkpoint is without {' and '.join(missing)}; give a complete one of "
            f"{SUPPORTED}."
        )
    tiny = TINY_VAE + "decoder.1.weight" in weights
    return {
        "unet": _unet(weights),
        "vae": _tiny_vae(weights) if tiny else _vae(weights),
        "text_encoder": _open_clip(weights) if _is_open_clip(weights) else _clip(weights),
    }


def prediction_type(weights: Weights) -> PredictionType:
    """What the UNet predicts; nothing in the file says so.

    SD 1.x predicts epsilon. Of the SD 2.x models the ones trained on v are told by the spread of
    one bias, above 0.09 in all that are known, which is the rule ComfyUI goes by as well.
    """
    bias = weights.get(UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if not _is_open_clip(weights) or bias is None:
        return "epsilon"
    return "v_prediction" if bias.float().std(correction=0) > 0.09 else "epsilon"


def _is_open_clip(weights: Weights) -> bool:
    return OPEN_CLIP + "token_embedding.weight" in weights


def _unet(weights: Weights) -> dict[str, Any]:
    levels = list(_levels(weights))
    attention = [UNET + f"input_blocks.{level[0]}.1." for level in levels]
    channels = [
        len(weights[UNET + f"input_blocks.{level[-1]}.0.out_layers.3.weight"]) for level in levels
    ]
    attends = [prefix + "proj_in.weight" in weights for prefix in attention]
    if not any(attends):
        refuse("a UNet without cross-attention")
    first = attention[attends.index(True)]
    linear = weights[first + "proj_in.weight"].ndim == 2  # SD 2.x
    first_conv = weights[UNET + "input_blocks.0.0.weight"]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": first_conv.shape[1],
        "out_channels": len(weights[UNET + "out.2.weight"]),
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "cross_attention_dim": weights[first + "transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # diffusers' name for the number of heads: 8 in SD 1.x, of 64 channels each in SD 2.x
        "attention_head_dim": [max(1, c // 64) for c in channels] if linear else 8,
        "use_linear_projection": linear,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
    }


def _levels(weights: Weights) -> Iterator[list[int]]:
    """The indices of the residual blocks of each level of the UNet's way down."""
    level: list[int] = []
    for index in count(1):
        block = UNET + f"input_blocks.{index}.0."
        if block + "out_layers.3.weight" in weights:
            level.append(index)
        else:  # a downsampler, or the end
            yield level
            level = []
            if block + "op.weight" not in weights:
                return


def _vae(weights: Weights) -> dict[str, Any]:
    def block(level: int, index: int) -> str:
        return VAE + f"encoder.down.{level}.block.{index}.conv2.weight"

    levels = _length(weights, lambda level: block(level, 0))
    channels = [len(weights[block(level, 0)]) for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "latent_channels": weights[VAE + "decoder.conv_in.weight"].shape[1],
        "block_out_channels": channels,
        "layers_per_block": _length(weights, lambda index: block(0, index)),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": 0.18215,
    }


def _tiny_vae(weights: Weights) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": weights[TINY_VAE + "decoder.1.weight"].shape[1],
    }


def _clip(weights: Weights) -> dict[str, Any]:
    layer = CLIP + "encoder.layers.{}.mlp.fc1.weight"
    return _text_encoder(
        table=weights[CLIP + "embeddings.token_embedding.weight"],
        positions=weights[CLIP + "embeddings.position_embedding.weight"],
        inner=weights[layer.format(0)],
        layers=_length(weights, layer.format),
        activation="quick_gelu",
    )


def _open_clip(weights: Weights) -> dict[str, Any]:
    layer = OPEN_CLIP + "transformer.resblocks.{}.mlp.c_fc.weight"
    return _text_encoder(
        table=weights[OPEN_CLIP + "token_embedding.weight"],
        positions=weights[OPEN_CLIP + "positional_embedding"],
        inner=weights[layer.format(0)],
        layers=_length(weights, layer.format) - 1,  # SD 2.x reads the last but one
        activation="gelu",
    )


def _text_encoder(
    table: Tensor, positions: Tensor, inner: Tensor, layers: int, activation: str
) -> dict[str, Any]:
    words, width = table.shape
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": words,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": len(inner),
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": len(positions),
        "hidden_act": activation,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }


def _length(weights: Weights, key: Any) -> int:
    """How many of key(0), key(1), ... there are."""
    return next(index for index in count() if key(index) not in weights)
