"""Checkpoints in the original latent-diffusion layout, renamed from diffusers' modules by hand."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

State = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "attn_1.group_norm": "attn_1.norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}


def replaced(name: str, table: dict[str, str]) -> str:
    for new, old in table.items():
        name = re.sub(rf"(?<!\w){re.escape(new)}(?!\w)", old, name)
    return name


def unet_layout(unet: nn.Module) -> State:
    per_level = unet.config.layers_per_block + 1
    attends = {
        (kind, block)
        for kind, block in re.findall(r"(up|down)_blocks\.(\d)\.att", str(list(unet.state_dict())))
    }

    def place(match: re.Match[str]) -> str:
        kind, block, part, layer = match[1], int(match[2]), match[3], int(match[4])
        if kind == "down":
            if part == "downsamplers":
                return f"input_blocks.{per_level * (block + 1)}.0.op"
            return f"input_blocks.{per_level * block + layer + 1}.{int(part == 'attentions')}"
        if part == "upsamplers":
            after = 1 + ((kind, match[2]) in attends)
            return f"output_blocks.{per_level * (block + 1) - 1}.{after}.conv"
        return f"output_blocks.{per_level * block + layer}.{int(part == 'attentions')}"

    state = {}
    for name, value in unet.state_dict().items():
        new = re.sub(r"(up|down)_blocks\.(\d)\.(\w+)\.(\d)(?:\.conv(?=\.))?", place, name)
        new = replaced(new, ENDS)
        if "resnets" in name:
            new = replaced(new, RESNET)
        state[f"model.diffusion_model.{new}"] = value
    return state


def vae_layout(vae: nn.Module) -> State:
    levels = len(vae.config.block_out_channels)
    state = {}
    for name, value in vae.state_dict().items():
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.", "down.", new)
        new = re.sub(
            r"up_blocks\.(\d)(\.resnets)?",
            lambda m: f"up.{levels - 1 - int(m[1])}" + (".block" if m[2] else ""),
            new,
        )
        new = replaced(new, VAE)
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)
        state[f"first_stage_model.{new}"] = value[:, :, None, None] if is_projection else value
    return state


def clip_layout(encoder: nn.Module) -> State:
    prefix = "cond_stage_model.transformer.text_model."
    return {prefix + k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}


def open_clip_layout(encoder: nn.Module) -> State:
    """OpenCLIP's names, q, k and v in one, and one layer more, which SD 2.x does not use."""
    state: State = {}
    source = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    for name, value in source.items():
        if match := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
            value = torch.cat([source[f"{match[1]}{part}_proj.{match[2]}"] for part in "qkv"])
            name = f"{match[1]}in_proj_{match[2]}"
        elif re.search(r"self_attn\.[kv]_proj", name):
            continue
        new = replaced(name, OPEN_CLIP).replace("c_fc", "mlp.c_fc").replace("mlp.mlp", "mlp")
        state["cond_stage_model.model." + new] = value
    last = encoder.config.num_hidden_layers
    first = "cond_stage_model.model.transformer.resblocks.0."
    for name in [name for name in state if name.startswith(first)]:
        state[name.replace("resblocks.0.", f"resblocks.{last}.")] = state[name]
    state["cond_stage_model.model.text_projection"] = torch.eye(encoder.config.hidden_size)
    return state


def xl_layout(first: State, second: nn.Module) -> State:
    """Both encoders by XL's names; the second with its projection, and no layer left unused."""
    old = "cond_stage_model."
    last = f"resblocks.{second.config.num_hidden_layers}."
    projected = open_clip_layout(second)
    projection = second.text_projection.weight.T
    return {
        **{k.replace(old, "conditioner.embedders.0."): v for k, v in first.items()},
        **{
            k.replace(old, "conditioner.embedders.1."): v
            for k, v in projected.items()
            if last not in k and "text_projection" not in k
        },
        "conditioner.embedders.1.model.text_projection": projection,
    }


@pytest.fixture
def ldm_layout() -> Callable[..., State]:
    """Name the weights of diffusers' modules as a single-file checkpoint does."""

    def layout(
        unet: nn.Module,
        vae: nn.Module,
        encoder: nn.Module,
        second: nn.Module | None = None,
        *,
        sd2: bool = False,
    ) -> State:
        text = open_clip_layout(encoder) if sd2 else clip_layout(encoder)
        if second is not None:
            text = xl_layout(text, second)
        state = {**unet_layout(unet), **vae_layout(vae), **text}
        return {name: value.contiguous().clone() for name, value in state.items()}

    return layout
