"""The layers chosen by structure are those of the method, in every UNet."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from magicapture.attention import last_blocks, self_attentions
from magicapture.errors import UnsupportedModelError
from magicapture.magicface import decoder_layers

SD1 = {"cross_attention_dim": 768}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
}


def unet(**config) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@pytest.mark.parametrize("config", [SD1, SD2])
def test_the_six_last_self_attentions_of_stable_diffusion(config):
    """10 to 15 in call order: three at 32x32, three at 64x64 for 512 px."""
    layers = decoder_layers(unet(**config))
    assert list(layers) == [
        f"up_blocks.{block}.attentions.{i}.transformer_blocks.0.attn1"
        for block in (2, 3)
        for i in range(3)
    ]


def test_all_of_sdxls_decoder():
    layers = decoder_layers(unet(**SDXL))
    assert len(layers) == 36
    assert {name.split(".")[1] for name in layers} == {"0", "1"}


def test_eleven_maps_of_32_and_below_in_stable_diffusion():
    """5 at 32, 5 at 16, 1 at 8; those at 64 (the first level) are too large to map."""
    model = unet(**SD1)
    blocks = last_blocks(model, middle=True)
    finest = ("down_blocks.0", "up_blocks.3")
    assert len([block for block in blocks if not block.startswith(finest)]) == 11
    assert {f"{block}.attn1" for block in blocks} == set(self_attentions(model))
    assert set(blocks) - set(last_blocks(model)) == {"mid_block.attentions.0.transformer_blocks.0"}


def test_sdxls_stacks_are_mapped_once_each():
    blocks = last_blocks(unet(**SDXL), middle=True)
    assert len(blocks) == 11
    assert "up_blocks.0.attentions.0.transformer_blocks.9" in blocks


def test_a_network_without_attention_in_its_decoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="decoder"):
        decoder_layers(torch.nn.Linear(2, 2))
