"""Tiny models of further families with joint attention: diffusers' own classes, random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import nn

from magicapture.backbones import DiffusersBackbone
from magicapture.schedule import FlowLevels, Schedule, flow_levels
from magicapture.tokens import Phrase, TokenVectors


def random(network: nn.Module, seed: int) -> Any:
    """The network with numbers that are far from a fresh one's."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.15)
        if "norm" in name and parameter.ndim == 1:
            parameter.data += 1
    return network.eval().requires_grad_(False)


def chroma_transformer(**changes: Any) -> ChromaTransformer2DModel:
    """Two double blocks and two single ones, 32 wide."""
    config: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": (4, 6, 6),
        "approximator_hidden_dim": 32,
        "approximator_layers": 2,
    }
    return random(ChromaTransformer2DModel(**{**config, **changes}), 8)


def klein_transformer(**changes: Any) -> Flux2Transformer2DModel:
    """Two double blocks and two single ones, 32 wide, over latents of 16 channels."""
    config: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * 48,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    return random(Flux2Transformer2DModel(**{**config, **changes}), 9)


def flux2_vae(**changes: Any) -> AutoencoderKLFlux2:
    """Four levels of 8 channels; its latents make 16 channels at 16 pixels a cell."""
    torch.manual_seed(10)
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    vae = AutoencoderKLFlux2(**{**config, **changes})
    vae.bn.running_mean.copy_(0.2 * torch.randn(len(vae.bn.running_mean)))
    vae.bn.running_var.copy_(0.5 + torch.rand(len(vae.bn.running_var)))
    return vae.eval().requires_grad_(False)


@dataclass(frozen=True)
class Kind:
    """A family at toy size: its backbone, and how its pipeline is made of the same parts.

    cell: latent cells a side of a place. rotary: the width of a head.
    """

    family: str
    make: Callable[[SimpleNamespace, Path], DiffusersBackbone]
    pipeline: Any
    vectors: Mapping[str, int]
    channels: int = 4
    cell: int = 2

    def told(self) -> TokenVectors:
        """The token "ada": vectors where the family has them, else a phrase."""
        if not self.vectors:
            return TokenVectors({}, {"ada": Phrase("ada lovel", "woman")})
        random = torch.Generator().manual_seed(1)
        own = {k: 2 * torch.randn(2, width, generator=random) for k, width in self.vectors.items()}
        return TokenVectors({"ada": own})


def _chroma(tiny: SimpleNamespace, folder: Path) -> DiffusersBackbone:
    return DiffusersBackbone(
        unet=chroma_transformer(),
        vae=tiny.vae("kl", scaling_factor=0.3611, shift_factor=0.1159),
        text_encoders={"t5xxl": tiny.t5()},
        tokenizers={"t5xxl": tiny.t5_tokenizer(folder / "t5")},
        schedule=Schedule(FlowLevels(shift=3.0), "flow"),
    )


def _klein(tiny: SimpleNamespace, folder: Path) -> DiffusersBackbone:
    return DiffusersBackbone(
        unet=klein_transformer(),
        vae=flux2_vae(),
        text_encoders={"qwen3_4b": tiny.qwen(num_hidden_layers=28)},
        tokenizers={"qwen3_4b": tiny.qwen_tokenizer(folder / "qwen")},
        schedule=Schedule(flow_levels(7.5, 3.0), "flow"),
    )


KINDS = {
    "chroma": Kind("chroma", _chroma, ChromaPipeline, {"t5xxl": 48}),
    "klein": Kind("flux2_klein_4b", _klein, Flux2KleinPipeline, {}, channels=16, cell=1),
}
