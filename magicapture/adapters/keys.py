"""The names that LoRA files give to layers, told apart and brought to diffusers' own.

A key is a prefix (which network), a layer and a suffix (which tensor). kohya's files write the
layer with underscores alone, `down_blocks_0_attentions_1_proj_in`; the words in which an
underscore belongs to the name are known, so a grammar of words puts the dots back.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WORDS = (
    # The UNet.
    *("down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers"),
    *("upsamplers", "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out"),
    *("ff", "net", "proj", "proj_in", "proj_out", "conv", "conv1", "conv2", "conv_in", "conv_out"),
    *("conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2"),
    # CLIP's text encoder.
    *("text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    *("mlp", "fc1", "fc2", "text_projection"),
    # Transformers with joint attention (Flux, Stable Diffusion 3).
    *("single_transformer_blocks", "attn", "add_q_proj", "add_k_proj", "add_v_proj"),
    *("to_add_out", "ff_context", "proj_mlp"),
    # Flux.2's.
    *("to_qkv_mlp_proj", "linear_in", "linear_out"),
    # Qwen-Image's.
    *("img_mlp", "txt_mlp", "img_mod", "txt_mod"),
    # Krea 2's.
    *("to_gate", "gate", "up", "down", "text_fusion", "layerwise_blocks", "refiner_blocks"),
    # Z-Image's.
    *("attention", "feed_forward", "w1", "w2", "w3", "noise_refiner", "context_refiner"),
)
_WORD = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))}|\d+)(?:_|$)")

# Stable Diffusion's original layout numbers the blocks of all levels in one row, three to a level.
_ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks)_(?:(\d+)_)?1_(.+)")

_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "clip_l",
    "lora_te2_": "clip_g",
    "lora_te_": "clip_l",
    "unet_": "unet",
    "text_encoder_2_": "clip_g",
    "text_encoder_": "clip_l",
    "diffusion_model_": "unet",
    "lora_transformer_": "transformer",
    "transformer_": "transformer",
    "": "unet",
}
# Where a key does not say which network: a UNet has its transformer blocks inside of its levels.
_AT_THE_ROOT = ("transformer_blocks.", "single_transformer_blocks.", "layers.", "text_fusion.")
_SUFFIX = re.compile(
    r"[._](?:lora(?:_linear_layer)?[._](?P<side>down|up|A|B)(?:\.default)?\.weight|(?P<alpha>alpha))"
)
_SIDES = {"down": "down", "A": "down", "up": "up", "B": "up"}


def is_lora(key: str) -> bool:
    """Whether a key ends as a LoRA's do, whatever its layer is."""
    return any(match.end() == len(key) for match in _SUFFIX.finditer(key))


class Key(NamedTuple):
    """What a file's key stands for: "down", "up" or "alpha" of one layer of one part."""

    part: str
    layer: str
    tensor: str


def parse(key: str) -> Key | None:
    """Read a key of kohya's, diffusers' (old and new), PEFT's or ComfyUI's LoRA files.

    Returns None for a key that names no linear layer of a known network.
    """
    suffix = next((m for m in _SUFFIX.finditer(key) if m.end() == len(key)), None)
    if suffix is None:
        return None
    flat = key[: suffix.start()].replace(".", "_")
    starts = (prefix for prefix in _PREFIXES if flat.startswith(prefix))
    found = ((p, canonical_name(_modern(flat.removeprefix(p)))) for p in starts)
    prefix, layer = next(((p, name) for p, name in found if name), ("", None))
    if layer is None:
        return None
    if layer.startswith("encoder."):  # transformers 5 names CLIPTextModel's layers so
        layer = f"text_model.{layer}"
    part = _PREFIXES[prefix]
    if part == "unet" and layer.startswith(_AT_THE_ROOT):
        part = "transformer"
    return Key(part, layer, _SIDES[suffix["side"]] if suffix["side"] else "alpha")


def flat_name(layer: str) -> str:
    """kohya's spelling of a layer: diffusers' name with underscores for dots."""
    return layer.replace(".", "_")


def canonical_name(flat: str) -> str | None:
    """diffusers' spelling of a layer that kohya's files write flat; None for an unknown one."""
    words, position = [], 0
    flat = _from_original(flat)
    while position < len(flat):
        match = _WORD.match(flat, position)
        if match is None:
            return None
        words.append(match[1])
        position = match.end()
    return ".".join(words) if words and not flat.endswith("_") else None


def _modern(flat: str) -> str:
    """Undo diffusers' older spelling, in which a projection belonged to a processor."""
    if "_processor_" not in flat:
        return flat
    flat = flat.replace("_processor_", "_")
    return f"{flat}_0" if flat.endswith("to_out") else flat


def _from_original(flat: str) -> str:
    """An attention layer of the original layout in diffusers' blocks; other names unchanged."""
    match = _ORIGINAL.fullmatch(flat)
    if match is None:
        return flat
    block, number, rest = match.groups()
    if block == "middle_block":
        return f"mid_block_attentions_0_{rest}"
    row = int(number) - 1 if block == "input_blocks" else int(number)
    side = "down" if block == "input_blocks" else "up"
    return f"{side}_blocks_{row // 3}_attentions_{row % 3}_{rest}"
