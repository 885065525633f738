"""One pass of each kind of network: latents, level and conditioning to what it predicts.

What a family's network is told beside them is here, and nothing else of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..attention import TappedTorch
from ..backbone import Conditioning, each_length
from ..families import FamilyName

PATCH = 2
"""Latent cells a side of one place of a transformer, of all families of them."""


def unet_pass(
    unet: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
    downscale: int,
) -> Tensor:
    """The output (B,C,h,w) of Stable Diffusion's UNet for latents noised to timesteps (B,).

    XL's is told the pooled text beside the context, and that it sees a whole picture of this size.
    downscale: pixels to a latent cell.
    """
    told = None
    if "pooled" in conditioning.extra:
        height, width = (downscale * cells for cells in noisy.shape[-2:])
        size = noisy.new_tensor([[height, width, 0, 0, height, width]]).to(dtype)
        told = {
            "text_embeds": conditioning.extra["pooled"].to(dtype),
            "time_ids": size.expand(len(noisy), -1),
        }
    output = unet(
        noisy.to(dtype),
        timesteps.to(noisy.device),
        encoder_hidden_states=conditioning.context.to(dtype),
        added_cond_kwargs=told,
    )
    return output.sample  # type: ignore[no-any-return]


def flux_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
    guidance: Tensor | None = None,
) -> Tensor:
    """The velocity noise - x0 (B,C,h,w) of Flux's transformer; timesteps (B,) in 0..1.

    It sees 2x2 latent cells as one place, told by (0, row, column), and words all at (0, 0, 0).
    guidance: (B,), told to one that it is distilled in; None where it is not.
    """
    told = guidance if transformer.config.guidance_embeds else None  # schnell has none
    return _joint_pass(
        transformer,
        noisy,
        timesteps,
        conditioning,
        dtype,
        pooled_projections=conditioning.extra["pooled"].to(dtype),
        guidance=None if told is None else told.to(noisy.device, dtype),
    )


def chroma_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The velocity of Chroma's transformer, as `flux_pass`, told nothing beside the words.

    Texts of one length run together: its mask would be added to the scores, and hide nothing.
    """

    def run(noisy: Tensor, timesteps: Tensor, of: Conditioning, rows: tuple[int, ...]) -> Tensor:
        with TappedTorch.of(transformer).seeing(rows):
            return _joint_pass(transformer, noisy, timesteps, of, dtype)

    return each_length(run, noisy, timesteps, conditioning)


def klein_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The velocity of Flux.2's transformer, of which each latent cell is a place.

    Places are told by (0, row, column, 0), and words by (0, 0, 0, column).
    """
    return _joint_pass(
        transformer, noisy, timesteps, conditioning, dtype, patch=1, axes=4, guidance=None
    )


def _joint_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
    *,
    patch: int = PATCH,
    axes: int = 3,
    **told: Any,
) -> Tensor:
    """One pass of a transformer of Flux's kind; axes: numbers that tell a place."""
    height, width = _places(noisy, patch)
    places = torch.zeros(height * width, axes)
    places[:, :3] = _grid(height, width)
    words = torch.zeros(conditioning.context.shape[1], axes)
    words[:, 3:] = torch.arange(len(words))[:, None]
    output = transformer(
        hidden_states=_packed(noisy.to(dtype), patch),
        timestep=timesteps.to(noisy.device, dtype),
        encoder_hidden_states=conditioning.context.to(dtype),
        img_ids=places.to(noisy.device),
        txt_ids=words.to(noisy.device),
        **told,
    )
    return _unpacked(output.sample, width, patch)


def zimage_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The velocity noise - x0 (B,C,h,w) of Z-Image's transformer; timesteps (B,) in 0..1.

    It is told 1 - t and gives x0 - noise. Each row has as many words as its own text: it fills them
    up, and places the picture behind them.
    """
    lengths = conditioning.extra["length"].tolist()
    words = [row[:own].to(dtype) for row, own in zip(conditioning.context, lengths, strict=True)]
    output = transformer(
        x=list(noisy.to(dtype)[:, :, None]),  # of one frame
        t=1 - timesteps.to(noisy.device),
        cap_feats=words,
    )
    return -torch.stack(output.sample)[:, :, 0]


def qwen_image_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The velocity noise - x0 (B,C,h,w) of Qwen-Image's transformer; timesteps (B,) in 0..1.

    It sees 2x2 latent cells of a film's one frame as one place. Columns behind a row's own text
    are masked.
    """
    height, width = _places(noisy)
    output = transformer(
        hidden_states=_packed(noisy.to(dtype)),
        timestep=timesteps.to(noisy.device, dtype),
        encoder_hidden_states=conditioning.context.to(dtype),
        encoder_hidden_states_mask=_mask(conditioning),
        img_shapes=[[(1, height, width)]] * len(noisy),
    )
    return _unpacked(output.sample, width)


def krea2_pass(
    transformer: Any,
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The velocity noise - x0 (B,C,h,w) of Krea 2's transformer; timesteps (B,) in 0..1.

    Its words are all at (0, 0, 0), its places at (0, row, column); of each word it reads what
    several layers made. Columns behind a row's own text are masked.
    """
    height, width = _places(noisy)
    words = conditioning.context.to(dtype).unflatten(-1, (transformer.config.num_text_layers, -1))
    at = torch.cat([torch.zeros(words.shape[1], 3), _grid(height, width)])
    output = transformer(
        hidden_states=_packed(noisy.to(dtype)),
        encoder_hidden_states=words,
        timestep=timesteps.to(noisy.device),
        position_ids=at.to(noisy.device),
        encoder_attention_mask=_mask(conditioning),
    )
    return _unpacked(output.sample, width)


def _mask(conditioning: Conditioning) -> Tensor | None:
    """True where a column is of a row's own text (B,L); None where all are."""
    context, own = conditioning.context, conditioning.extra["length"]
    if min(own.tolist()) == context.shape[1]:
        return None
    return torch.arange(context.shape[1], device=context.device) < own[:, None].to(context.device)


def _places(noisy: Tensor, patch: int = PATCH) -> tuple[int, int]:
    """Height and width in places of a transformer."""
    return noisy.shape[-2] // patch, noisy.shape[-1] // patch


def _grid(height: int, width: int) -> Tensor:
    """Each place's (0, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)


def _packed(latents: Tensor, patch: int = PATCH) -> Tensor:
    """Latents (B,C,h,w) as a row of places."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def _unpacked(places: Tensor, width: int, patch: int = PATCH) -> Tensor:
    """A row of places, so many to a line, as (B,C,h,w)."""
    return rearrange(places, "b (h w) (c p q) -> b c (h p) (w q)", w=width, p=patch, q=patch)


PASSES: Mapping[FamilyName, Callable[..., Tensor]] = {
    "chroma": chroma_pass,
    "zimage": zimage_pass,
    "flux2_klein_4b": klein_pass,
    "flux2_klein_9b": klein_pass,
    "qwen_image": qwen_image_pass,
    "krea2": krea2_pass,
}
"""The passes of transformers that are told no more than latents, level and words."""
