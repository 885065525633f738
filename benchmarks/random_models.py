"""Models of the real classes with random weights, tiny or of Stable Diffusion's sizes."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from magicapture.backbones import DiffusersBackbone
from magicapture.schedule import DiscreteLevels, Schedule


@dataclass(frozen=True)
class Size:
    """The models' sizes, and the pictures'; title: what they are. second: XL's text encoder."""

    title: str
    resolution: int
    unet: dict[str, Any]
    text: dict[str, Any]
    vae: dict[str, Any]
    decoder: dict[str, Any]
    embedder_width: int
    second: dict[str, Any] | None = None


def _vae(*channels: int, layers: int, groups: int) -> dict[str, Any]:
    blocks = len(channels)
    return {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }


TINY = Size(
    "tiny models",
    128,
    {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    },
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    _vae(8, 8, 8, 8, layers=1, groups=4),
    {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
    8,
)
FULL = Size(
    "Stable Diffusion 1.5's sizes",
    512,
    {"cross_attention_dim": 768},
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    _vae(128, 256, 512, 512, layers=2, groups=32),
    {},
    64,
)


def _xl(title: str, resolution: int, width: int, text: int, second: int, channels: int) -> Size:
    """XL's shape: `width` channels in the first level, text encoders so wide, heads of 64."""
    return Size(
        title,
        resolution,
        {
            "block_out_channels": (width, 2 * width, 4 * width),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": tuple(max(1, n * width // 64) for n in (1, 2, 4)),
            "use_linear_projection": True,
            "cross_attention_dim": text + second,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": second + 6 * 256,
        },
        {**FULL.text, "hidden_size": text, "intermediate_size": 4 * text},
        {**_vae(*(channels * n for n in (1, 2, 4, 4)), layers=2, groups=32)},
        {},
        64,
        second={
            "hidden_size": second,
            "intermediate_size": 4 * second,
            "num_hidden_layers": 32,
            "num_attention_heads": max(1, second // 64),
            "projection_dim": second,
            "hidden_act": "gelu",
        },
    )


XL = _xl("Stable Diffusion XL's sizes", 1024, 320, 768, 1280, 128)
NARROW_XL = replace(
    _xl("Stable Diffusion XL's shape, three tenths as wide", 512, 96, 192, 384, 32),
    embedder_width=16,
)
SIZES = {"tiny": TINY, "full": FULL, "narrow-xl": NARROW_XL, "xl": XL}


class FaceEmbedder(nn.Module):
    """A ResNet-50 on 112x112 faces, about as dear as ArcFace's, with random weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from torchvision.models.resnet import Bottleneck, ResNet

        base = {"width_per_group": width}
        self.network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=512, **base)
        self.network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.eval().requires_grad_(False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.network(2 * faces - 1)


def clip_tokenizer() -> Any:
    """CLIP's own words."""
    from transformers import CLIPTokenizer

    from magicapture.backbones.clip_tokenizer import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def build(size: Size, device: torch.device, dtype: torch.dtype) -> DiffusersBackbone:
    """A backbone with random weights and CLIP's own words; on "meta" it has shapes alone."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    words = {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", **ids}
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod
    with device if device.type == "meta" else nullcontext():
        encoders = {"clip_l": CLIPTextModel(CLIPTextConfig(**words, **size.text))}
        if size.second is not None:
            config = CLIPTextConfig(**{**words, **size.second})
            encoders["clip_g"] = CLIPTextModelWithProjection(config)
        unet = UNet2DConditionModel(sample_size=size.resolution // 8, **size.unet)
        vae = AutoencoderKL(latent_channels=4, **size.vae)
        decoder = AutoencoderTiny(**size.decoder)
    for module in (unet, vae, *encoders.values(), decoder):
        module.to(device, dtype).eval().requires_grad_(False)
    return DiffusersBackbone(
        unet=unet,
        vae=vae,
        text_encoders=encoders,
        tokenizers=dict.fromkeys(encoders, clip_tokenizer()),
        schedule=Schedule(DiscreteLevels(schedule)),
        decoder=decoder,
    )


def pictures(count: int, side: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Smooth random pictures."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return tuple(F.interpolate(noise, (side, side), mode="bilinear"))
