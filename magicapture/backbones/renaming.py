"""diffusers' names for the weights of a single-file checkpoint.

Such a file has the names of the original latent-diffusion code: blocks of all levels numbered in
one row, and OpenCLIP's for the text encoder of Stable Diffusion 2.x.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_VAE = {
    "norm_out": "conv_norm_out",
    "nin_shortcut": "conv_shortcut",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "attentions.0.norm": "attentions.0.group_norm",
}
_VAE_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    # as diffusers itself called them at first
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
_OPEN_CLIP = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn": "self_attn",
}


def below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def unet_weights(weights: Weights, layers_per_block: int) -> dict[str, Tensor]:
    """A UNet's weights by diffusers' names."""
    return {_unet_name(name, layers_per_block + 1): value for name, value in weights.items()}


def _unet_name(name: str, level: int) -> str:
    """level: how many blocks of the row make one level, its change of size included."""
    block = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
    if block is None or name.startswith("input_blocks.0."):
        return _resnet(_replaced(name, _UNET))
    side, number, kind, rest = block[1], int(block[2]), block[3], block[4]
    if side == "input":
        place = f"down_blocks.{(number - 1) // level}"
        if rest.startswith("op."):
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        layer = (number - 1) % level
    else:
        place = f"up_blocks.{number // level}"
        if rest.startswith("conv."):
            return f"{place}.upsamplers.0.{rest}"
        layer = number % level
    if kind == "0":
        return _resnet(f"{place}.resnets.{layer}.{rest}")
    return f"{place}.attentions.{layer}.{rest}"


def _resnet(name: str) -> str:
    return _replaced(name, _RESNET) if ".resnets." in name else name


def vae_weights(weights: Weights) -> dict[str, Tensor]:
    """A VAE's weights by diffusers' names, from the original's or from diffusers' first ones."""
    found = (re.match(r"decoder\.up\.(\d+)\.", name) for name in weights)
    top = max((int(match[1]) for match in found if match), default=0)
    renamed = {}
    for name, value in weights.items():
        name = re.sub(r"^encoder\.down\.(\d+)", r"encoder.down_blocks.\1", name)
        name = re.sub(
            r"^decoder\.up\.(\d+)", lambda m: f"decoder.up_blocks.{top - int(m[1])}", name
        )
        name = _replaced(re.sub(r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets.", name), _VAE)
        start, attention, rest = name.partition("mid_block.attentions.0.")
        if attention:
            name = start + attention + _replaced(rest, _VAE_ATTENTION)
            if value.ndim == 4:  # a 1x1 convolution there, a linear layer here
                value = value.flatten(1)
        renamed[name] = value
    return renamed


def open_clip_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    """OpenCLIP's first `layers` layers by transformers' names; the later ones are left out."""
    renamed = {}
    for name, value in weights.items():
        if name == "text_projection":
            renamed["text_projection.weight"] = value.T.contiguous()
            continue
        new = _replaced(name, _OPEN_CLIP)
        layer = re.match(r"encoder\.layers\.(\d+)\.", new)
        if layer and int(layer[1]) >= layers:
            continue
        if ".in_proj_" in new:
            for part, third in zip("qkv", value.chunk(3), strict=False):
                renamed[new.replace("in_proj_", f"{part}_proj.")] = third.clone()
        else:
            renamed[new] = value
    return renamed


def _replaced(name: str, table: Mapping[str, str]) -> str:
    """The name with whole words exchanged."""
    for old, new in table.items():
        name = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, name)
    return name
