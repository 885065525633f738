"""diffusers' configs from the shapes of a single-file checkpoint of SD 1.x, 2.x or XL.

Such a file has the names of the original latent-diffusion code and no config. Reading the
architecture from the weights also lets small models of the same build load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..errors import UnsupportedModelError
from ..schedule import Prediction
from .support import SUPPORTED, refuse

Weights = Mapping[str, Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
CLIP_LAYERS = CLIP + "encoder.layers."
OPEN_CLIP = "cond_stage_model.model."
OPEN_CLIP_LAYERS = OPEN_CLIP + "transformer.resblocks."
TINY_VAE = VAE + "taesd_"
SIZES = UNET + "label_emb."
_USUAL = {
    "conditioner.embedders.0.transformer.": "cond_stage_model.transformer.",
    "conditioner.embedders.1.model.": OPEN_CLIP,
}
"""What XL calls its two text encoders, and what 1.x and 2.x call their one."""

CLIP_WORDS = 49408
CLIP_DEPTH, OPEN_CLIP_DEPTH = 12, 23
"""Layers that a text encoder over CLIP's words has, and those that SD 2.x uses of OpenCLIP's 24."""

_OTHERS = {
    "conditioner.embedders.0.model.": "an SDXL refiner, which only finishes what a base began",
    "edm_": "one of the EDM kind (its noise levels have no timesteps)",
    UNET + "joint_blocks.": "a Stable Diffusion 3 model",
    UNET + "double_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "double_blocks.": "a Flux model",
    "lora_unet_": "a LoRA, not a whole model",
    "down_blocks.": "a UNet in diffusers' layout, without text encoder and VAE",
}


def with_usual_names(weights: Weights) -> dict[str, Tensor]:
    """The weights with the text encoders' names as in 1.x and 2.x, and CLIP's whole.

    XL has other names for them, and NovelAI's files leave "text_model." out.
    """
    return {_usual(name): value for name, value in weights.items()}


def _usual(name: str) -> str:
    for theirs, usual in _USUAL.items():
        if name.startswith(theirs):
            name = usual + name.removeprefix(theirs)
    short = CLIP.removesuffix("text_model.")
    if name.startswith(short) and not name.startswith(CLIP):
        return CLIP + name.removeprefix(short)
    return name


def configs(weights: Weights) -> dict[str, dict[str, Any]]:
    """The configs of "unet", "vae", "clip_l" and "clip_g" that the checkpoint's shapes stand for.

    weights: as `with_usual_names` has them. Raises UnsupportedModelError for another model, or
    when a part, a block or a weight is missing.
    """
    for prefix, kind in _OTHERS.items():
        if _has(weights, prefix):
            refuse(kind)
    if _has(weights, SIZES) and _has(weights, CLIP) != _has(weights, OPEN_CLIP):
        refuse(
            "conditioned on sizes, classes or noise levels with one text encoder (XL without its "
            "other one, unCLIP, an upscaler)"
        )
    parts = {"UNet": (UNET,), "VAE": (VAE,), "CLIP text encoder": (CLIP, OPEN_CLIP)}
    missing = [part for part, of in parts.items() if not any(_has(weights, p) for p in of)]
    missing = missing or _missing_blocks(weights)
    if missing:
        raise UnsupportedModelError(
            f"The checkpoint is without {' and '.join(missing[:3])}; give a complete one of "
            f"{SUPPORTED}."
        )
    try:
        return {
            "unet": _unet(weights),
            "vae": _tiny_vae(weights) if _has(weights, TINY_VAE) else _vae(weights),
            **_text_encoders(weights),
        }
    except KeyError as error:
        raise UnsupportedModelError(
            f"The checkpoint lacks the weight {error.args[0]}; give a complete one of {SUPPORTED}."
        ) from error


def _has(weights: Weights, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def _missing_blocks(weights: Weights) -> list[str]:
    """Names of the numbered blocks of which the file has nothing, though it must."""
    # What is halved on the way down is doubled on the way up, in as many blocks.
    pairs = (
        (UNET + "input_blocks.", UNET + "output_blocks."),
        (VAE + "encoder.down.", VAE + "decoder.up."),
    )
    lengths = {side: max(_length(weights, s) for s in pair) for pair in pairs for side in pair}
    texts = (
        (OPEN_CLIP_LAYERS, OPEN_CLIP + "token_embedding.weight", OPEN_CLIP_DEPTH),
        (CLIP_LAYERS, CLIP + "embeddings.token_embedding.weight", CLIP_DEPTH),
    )
    for text, table, depth in texts:
        if table in weights:
            known = depth if len(weights[table]) == CLIP_WORDS else 0
            lengths[text] = max(_length(weights, text), known)
    return [
        f"{prefix}{number}"
        for prefix, length in lengths.items()
        for number in sorted({*range(length)} - _numbers(weights, prefix))
    ]


def _numbers(weights: Weights, prefix: str) -> set[int]:
    """The numbers that follow a prefix."""
    starts = (k.removeprefix(prefix).partition(".")[0] for k in weights if k.startswith(prefix))
    return {int(start) for start in starts if start.isdecimal() and len(start) < 5}


def _length(weights: Weights, prefix: str) -> int:
    """How many blocks a prefix has, by the last one's number."""
    return max(_numbers(weights, prefix), default=-1) + 1


def schedule(weights: Weights) -> dict[str, Any]:
    """What differs from the usual schedule: `prediction_type` and zero terminal SNR.

    Files of XL models say so by two names, "v_pred" and "ztsnr".
    """
    told: Prediction = "v_prediction" if "v_pred" in weights else prediction_type(weights)
    return {"prediction_type": told, "rescale_betas_zero_snr": "ztsnr" in weights}


def prediction_type(weights: Weights) -> Prediction:
    """What the UNet of SD 1.x and 2.x predicts; nothing in the file says so.

    SD 1.x predicts epsilon. Of the SD 2.x models the ones trained on v are told by the spread of
    one bias, above 0.09 in all that are known, which is the rule ComfyUI goes by as well.
    """
    bias = weights.get(UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if not _is_open_clip(weights) or _is_large(weights) or bias is None:
        return "epsilon"
    return "v_prediction" if bias.float().std(correction=0) > 0.09 else "epsilon"


def _is_open_clip(weights: Weights) -> bool:
    return _has(weights, OPEN_CLIP)


def _is_large(weights: Weights) -> bool:
    """Whether it is an XL model: two text encoders, and a UNet that is told the picture's size."""
    return all(_has(weights, prefix) for prefix in (SIZES, CLIP, OPEN_CLIP))


def _text_encoders(weights: Weights) -> dict[str, dict[str, Any]]:
    if _is_large(weights):
        return {"clip_l": _clip(weights), "clip_g": _projected_open_clip(weights)}
    return {"clip_l": _open_clip(weights) if _is_open_clip(weights) else _clip(weights)}


def _unet(weights: Weights) -> dict[str, Any]:
    levels = list(_levels(weights))
    attention = [UNET + f"input_blocks.{level[0]}.1." for level in levels]
    channels = [
        len(weights[UNET + f"input_blocks.{level[-1]}.0.out_layers.3.weight"]) for level in levels
    ]
    attends = [_has(weights, prefix) for prefix in attention]
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
        "transformer_layers_per_block": [
            max(1, _length(weights, prefix + "transformer_blocks.")) for prefix in attention
        ],
        **(_sizes(weights) if _has(weights, SIZES) else {}),
    }


def _sizes(weights: Weights) -> dict[str, Any]:
    """How XL's UNet is told the picture's size: six numbers, and the pooled text before them."""
    pooled, told = weights[OPEN_CLIP + "text_projection"].shape[1], weights[SIZES + "0.0.weight"]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (told.shape[1] - pooled) // 6,
        "projection_class_embeddings_input_dim": told.shape[1],
    }


def _levels(weights: Weights) -> Iterator[list[int]]:
    """The numbers of the residual blocks of each level of the UNet's way down."""
    level: list[int] = []
    for number in range(1, _length(weights, UNET + "input_blocks.")):
        if _has(weights, UNET + f"input_blocks.{number}.0.op."):
            yield level
            level = []
        else:
            level.append(number)
    yield level


def _vae(weights: Weights) -> dict[str, Any]:
    levels = _length(weights, VAE + "encoder.down.")
    last = VAE + "encoder.down.{}.block.0.conv2.weight"
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "latent_channels": weights[VAE + "decoder.conv_in.weight"].shape[1],
        "block_out_channels": [len(weights[last.format(level)]) for level in range(levels)],
        "layers_per_block": _length(weights, VAE + "encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": 0.13025 if _is_large(weights) else 0.18215,
    }


def _tiny_vae(weights: Weights) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": weights[TINY_VAE + "decoder.1.weight"].shape[1],
    }


def _clip(weights: Weights) -> dict[str, Any]:
    return _text_encoder(
        table=weights[CLIP + "embeddings.token_embedding.weight"],
        positions=weights[CLIP + "embeddings.position_embedding.weight"],
        inner=weights[CLIP_LAYERS + "0.mlp.fc1.weight"],
        layers=_length(weights, CLIP_LAYERS),
        activation="quick_gelu",
    )


def _open_clip(weights: Weights) -> dict[str, Any]:
    table, layers = (
        weights[OPEN_CLIP + "token_embedding.weight"],
        _length(weights, OPEN_CLIP_LAYERS),
    )
    return _text_encoder(
        table=table,
        positions=weights[OPEN_CLIP + "positional_embedding"],
        inner=weights[OPEN_CLIP_LAYERS + "0.mlp.c_fc.weight"],
        # SD 2.x reads the last but one, and files that diffusers wrote stop there.
        layers=OPEN_CLIP_DEPTH if len(table) == CLIP_WORDS else layers - 1,
        activation="gelu",
    )


def _projected_open_clip(weights: Weights) -> dict[str, Any]:
    """XL reads the last layer but one, and the projection of what the last one pools."""
    return {
        **_open_clip(weights),
        "architectures": ["CLIPTextModelWithProjection"],
        "num_hidden_layers": _length(weights, OPEN_CLIP_LAYERS),
        "projection_dim": weights[OPEN_CLIP + "text_projection"].shape[1],
    }


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
