"""Names of layers: there and back over the layers of real models, and the spellings of others."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from magicapture.adapters.diffusers import to_diffusers
from magicapture.adapters.keys import Key, canonical_name, flat_name, parse
from magicapture.adapters.layers import gather
from magicapture.lora import LoraWeights

BLOCK = "transformer_blocks.0"
ENDING = ".lora_A.weight"


def layers(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True, "layers_per_block": 2},
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
            "transformer_layers_per_block": (1, 2, 11),
            "use_linear_projection": True,
        },
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_every_layer_of_a_unet_comes_back(tiny: SimpleNamespace, changes: dict) -> None:
    names = layers(tiny.unet(**changes))
    assert len({flat_name(name) for name in names}) == len(names)
    assert [canonical_name(flat_name(name)) for name in names] == names
    keys = [f"lora_unet_{flat_name(name)}.lora_down.weight" for name in names]
    assert [parse(key) for key in keys] == [Key("unet", name, "down") for name in names]


def test_every_layer_of_a_text_encoder_comes_back(tiny: SimpleNamespace) -> None:
    from transformers import CLIPTextModelWithProjection

    encoder = CLIPTextModelWithProjection(tiny.text_encoder(num_hidden_layers=12).config)
    names = layers(encoder)
    assert "text_projection" in names
    assert [canonical_name(flat_name(name)) for name in names] == names


def test_the_layers_of_joint_attention_blocks_come_back() -> None:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    small = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    small |= {"joint_attention_dim": 8, "pooled_projection_dim": 8}
    flux = FluxTransformer2DModel(**small, num_single_layers=1, axes_dims_rope=(2, 2, 4))
    sd3 = SD3Transformer2DModel(**small, caption_projection_dim=16, dual_attention_layers=(0,))
    for model in (flux, sd3):
        names = [n for n in layers(model) if re.search(r"attn|ff|proj_mlp|\d\.proj_out", n)]
        assert len(names) > 10
        for key in (f"transformer.{{}}{ENDING}", f"lora_transformer_{{}}{ENDING}"):
            spelled = [n if key.startswith("transformer") else flat_name(n) for n in names]
            found = [parse(key.format(name)) for name in spelled]
            assert found == [Key("transformer", name, "down") for name in names]


def test_what_is_written_in_diffusers_form_is_read(tmp_path: Path) -> None:
    """alpha = 1 at rank 2 halves up, which is exact."""
    of = LoraWeights(torch.randn(2, 4), torch.randn(6, 2), 1.0)
    parts = [f"transformer.{BLOCK}.attn.to_k", "clip_g.text_model.encoder.layers.0.mlp.fc1"]
    read = gather(to_diffusers(dict.fromkeys(parts, of)), tmp_path / "a.safetensors")
    assert list(read) == parts
    for weights in read.values():
        assert torch.equal(weights.down, of.down) and torch.equal(weights.up, of.up / 2)
        assert weights.alpha == 2


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_out_0.alpha",
            Key("unet", "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_out.0", "alpha"),
        ),
        (
            "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_k.lora_up.weight",
            Key("unet", f"up_blocks.1.attentions.2.{BLOCK}.attn2.to_k", "up"),
        ),
        (
            "lora_unet_middle_block_1_proj_in.lora_up.weight",
            Key("unet", "mid_block.attentions.0.proj_in", "up"),
        ),
        (
            f"unet.down_blocks.0.attentions.1.{BLOCK}.attn1.processor.to_out_lora.down.weight",
            Key("unet", f"down_blocks.0.attentions.1.{BLOCK}.attn1.to_out.0", "down"),
        ),
        (
            f"down_blocks.0.attentions.1.{BLOCK}.attn1.processor.to_q_lora.up.weight",
            Key("unet", f"down_blocks.0.attentions.1.{BLOCK}.attn1.to_q", "up"),
        ),
        (
            f"unet.mid_block.attentions.0.{BLOCK}.ff.net.0.proj.lora_A.default.weight",
            Key("unet", f"mid_block.attentions.0.{BLOCK}.ff.net.0.proj", "down"),
        ),
        (
            "text_encoder.encoder.layers.0.self_attn.q_proj.lora_B.weight",
            Key("clip_l", "text_model.encoder.layers.0.self_attn.q_proj", "up"),
        ),
        (
            "text_encoder.text_model.encoder.layers.3.mlp.fc1.lora_linear_layer.up.weight",
            Key("clip_l", "text_model.encoder.layers.3.mlp.fc1", "up"),
        ),
        (
            "lora_te2_text_model_encoder_layers_31_self_attn_out_proj.lora_down.weight",
            Key("clip_g", "text_model.encoder.layers.31.self_attn.out_proj", "down"),
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc2.alpha",
            Key("clip_l", "text_model.encoder.layers.0.mlp.fc2", "alpha"),
        ),
        (
            "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight",
            Key("transformer", "single_transformer_blocks.0.attn.to_q", "down"),
        ),
        (
            f"transformer.{BLOCK}.attn.add_k_proj.lora_B.weight",
            Key("transformer", f"{BLOCK}.attn.add_k_proj", "up"),
        ),
        (f"{BLOCK}.attn.to_q.lora_A.weight", Key("transformer", f"{BLOCK}.attn.to_q", "down")),
        (
            "lora_unet_single_transformer_blocks_0_proj_mlp.alpha",
            Key("transformer", "single_transformer_blocks.0.proj_mlp", "alpha"),
        ),
    ],
)
def test_spellings_of_other_programs(key: str, expected: Key) -> None:
    assert parse(key) == expected


@pytest.mark.parametrize(
    "key",
    [
        "emb_params",
        "lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a",
        "lora_unet_down_blocks_0_nonsense.lora_down.weight",
        "lora_unet_down_blocks_.alpha",
        "lora_unet_.alpha",
        "model.diffusion_model.input_blocks.1.1.proj_in.weight",
        "lora_transformer_single_transformer_blocks_0_nonsense.lora_down.weight",
    ],
)
def test_a_key_of_something_else_is_none(key: str) -> None:
    assert parse(key) is None
