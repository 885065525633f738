"""Between a VAE's own latents and those of the network that predicts."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from ..errors import InputError

_CELLS = 2
"""Of Flux.2's VAE, whose network sees 2x2 of its cells as one."""


def latent_channels(vae: Any) -> int:
    """Numbers in a latent cell of the network's."""
    return int(vae.config.latent_channels) * _cells(vae) ** 2


def downscale(vae: Any) -> int:
    """Image pixels to a latent cell of the network's."""
    return int(2 ** (len(vae.config.block_out_channels) - 1)) * _cells(vae)


def require_same_latents(vae: Any, decoder: Any) -> None:
    """Raise InputError for a small decoder of other latents than the VAE's."""
    expected, found = (
        f"{latent_channels(model)} channels, {downscale(model)} pixels a cell"
        for model in (vae, decoder)
    )
    if expected != found:
        raise InputError(
            f"The small decoder does not fit the model: its latents have {found}; the VAE's have "
            f"{expected}. Use the TAESD of this model's family, or none."
        )


def encode(vae: Any, images: Tensor) -> Tensor:
    """Images (B,3,H,W) in 0..1 to the mode of the network's latents (B,C,h,w), float32."""
    weight = next(vae.parameters())
    output = vae.encode((images * 2 - 1).to(weight))
    latents = (output.latents if hasattr(output, "latents") else output.latent_dist.mode()).float()
    if hasattr(vae, "bn"):
        latents = rearrange(latents, "b c (h p) (w q) -> b (c p q) h w", p=_CELLS, q=_CELLS)
    scale, shift = _scale(vae)
    return (latents - shift) * scale


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The network's latents to images in 0..1, differentiable and not clamped, float32."""
    scale, shift = _scale(vae)
    weight = next(vae.decoder.parameters())
    latents = latents / scale + shift
    if hasattr(vae, "bn"):
        latents = rearrange(latents, "b (c p q) h w -> b c (h p) (w q)", p=_CELLS, q=_CELLS)
    image = vae.decode(latents.to(weight)).sample
    return (image.float() + 1) / 2  # type: ignore[no-any-return]


def _cells(vae: Any) -> int:
    return _CELLS if hasattr(vae, "bn") else 1


def _scale(vae: Any) -> tuple[Any, Any]:
    """Scale and shift from a VAE's latents to the network's: (z - shift) * scale.

    Flux.2's VAE has those of each of its channels, counted while it was trained.
    """
    if hasattr(vae, "bn"):
        variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
        return variance.rsqrt()[:, None, None], vae.bn.running_mean.float()[:, None, None]
    return vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
