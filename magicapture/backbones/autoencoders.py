"""diffusers' autoencoders: pictures to latents as the networks have them, and back with gradient.

Those of Qwen-Image are made for films, of which a picture is one frame: (B,C,1,h,w). Of Flux.2's
networks see 2x2 cells as one, each channel by a scale that was counted while it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..errors import InputError

AUTOENCODERS = (
    *("AutoencoderKL", "AutoencoderTiny"),
    *("AutoencoderKLQwenImage", "AutoencoderKLFlux2"),
)
"""diffusers' classes that are supported."""


def latent_channels(config: Mapping[str, Any]) -> int:
    """Numbers in a latent cell, from an autoencoder's config."""
    own = int(config.get("z_dim", config.get("latent_channels", 4)))
    return own * _side(config) ** 2


def downscale(vae: Any) -> int:
    """Pixels a side of a latent cell."""
    if _of_frames(vae):
        return int(2 ** len(vae.config.temperal_downsample))
    return int(2 ** (len(vae.config.block_out_channels) - 1)) * _side(vae.config)


def require_same_latents(vae: Any, decoder: Any) -> None:
    """Raise InputError for a small decoder over other latents than the VAE's."""
    expected, found = (
        f"{latent_channels(model.config)} channels, {downscale(model)} pixels a cell, of "
        f"{'films' if _of_frames(model) else 'pictures'}"
        for model in (vae, decoder)
    )
    if expected != found:
        raise InputError(
            f"The small decoder does not fit the model: its latents have {found}; the VAE's have "
            f"{expected}. Use the TAESD of this model's family, or none."
        )


def latent_scale(vae: Any) -> tuple[Any, Any]:
    """Scale and shift between a VAE's own latents and the network's: (z - shift) * scale.

    Numbers, or one of each for every channel, (C,1,1).
    """
    if hasattr(vae, "bn"):
        variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
        return variance.rsqrt()[:, None, None], vae.bn.running_mean.float()[:, None, None]
    if not _of_frames(vae):
        return vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    like = next(vae.parameters())
    mean, deviation = (
        torch.tensor(of, device=like.device)[:, None, None]
        for of in (vae.config.latents_mean, vae.config.latents_std)
    )
    return 1 / deviation, mean


def encode(vae: Any, images: Tensor) -> Tensor:
    """Images to the mode of their latents (B,C,h,w) float32."""
    scale, shift = latent_scale(vae)
    pictures = (images * 2 - 1).to(next(vae.parameters()))
    if _of_frames(vae):
        latents = vae.encode(pictures[:, :, None]).latent_dist.mode()[:, :, 0]
    else:
        output = vae.encode(pictures)
        latents = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
    if (side := _side(vae.config)) > 1:
        latents = rearrange(latents, "b c (h p) (w q) -> b (c p q) h w", p=side, q=side)
    return (latents.float() - shift) * scale  # type: ignore[no-any-return]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B,C,h,w) to images, differentiable and not clamped."""
    scale, shift = latent_scale(vae)
    raw = (latents / scale + shift).to(next(vae.decoder.parameters()))
    if (side := _side(vae.config)) > 1:
        raw = rearrange(raw, "b (c p q) h w -> b c (h p) (w q)", p=side, q=side)
    if _of_frames(vae):  # its `decode` clamps, where no gradient would come through
        image = vae.decoder(vae.post_quant_conv(raw[:, :, None]))[:, :, 0]
    else:
        image = vae.decode(raw).sample
    return (image.float() + 1) / 2  # type: ignore[no-any-return]


def _side(config: Mapping[str, Any]) -> int:
    """Cells a side that networks see as one."""
    return 2 if "batch_norm_eps" in config else 1


def _of_frames(vae: Any) -> bool:
    return hasattr(vae.config, "z_dim")
