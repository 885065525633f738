"""A style's likeness without a further network: what the base model's own autoencoder sees.

Means and spreads of feature channels tell textures, media and colours apart and leave the place of
things out; style transfer works by them (Huang & Belongie 2017, AdaIN).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone

_FLAT = 1e-3
"""Added to a spread, and the least one that is divided by."""

_FARTHEST = 3.0
"""Spreads away from the mean at the most: a channel that is dead in the pool would outweigh all
others in a picture where it lives."""


@dataclass(frozen=True, eq=False)
class Space:
    """Vectors relative to a pool of pictures: without its mean, each number by its spread.

    Raw features of any two pictures are alike; what is left after this tells them apart.
    """

    centre: Tensor
    scale: Tensor
    farthest: float

    @classmethod
    def of(cls, pool: Tensor, *, spread: bool = True) -> Space:
        """The space of a pool (N,D); with spread=False only its mean is taken away."""
        scale = pool.std(dim=0).clamp_min(_FLAT) if spread else torch.ones(pool.shape[1])
        return cls(pool.mean(dim=0), scale, _FARTHEST if spread else math.inf)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Vectors (N,D) in this space."""
        return ((vectors - self.centre) / self.scale).clamp(-self.farthest, self.farthest)


class StyleReader:
    """Reads pictures' statistics off the face by a backbone's autoencoder."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    @torch.no_grad()
    def painted(self, image: Tensor) -> Tensor:
        """An image (3,H,W) as the autoencoder paints it, so that it is compared with drawn ones."""
        latents = self.backbone.encode(image[None].to(self.backbone.device))
        return self.backbone.decode(latents)[0].clamp(0, 1).float().cpu()

    @torch.no_grad()
    def __call__(self, image: Tensor, face: Tensor | None) -> Tensor:
        """Of an image (3,H,W), the statistics (D,) of its pixels, features and latents.

        face: (1,H,W), 1 on the face, which is left out. Each level counts alike in `weights`.
        """
        return torch.cat(self._levels(image, face))

    def weights(self, image: Tensor) -> Tensor:
        """Factors (D,) by which each level counts alike, whatever its number of channels."""
        levels = self._levels(image, None)
        return torch.cat([torch.full_like(level, len(level) ** -0.5) for level in levels])

    def _levels(self, image: Tensor, face: Tensor | None) -> list[Tensor]:
        pixels = image[None].to(self.backbone.device)
        inside = torch.zeros_like(pixels[:, :1]) if face is None else face[None].to(pixels)
        with torch.no_grad(), _halvings(self.backbone.picture_encoder) as seen:
            latents = self.backbone.encode(pixels)
        return [_statistics(level, 1 - inside) for level in (pixels, *seen, latents)]


@contextmanager
def _halvings(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """What goes into each layer that halves the picture, while open."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
        for layer in encoder.modules()
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _statistics(features: Tensor, where: Tensor) -> Tensor:
    """Mean and log spread of each channel of (1,C,h,w), over the part `where` (1,1,H,W) is 1."""
    features = features.float()
    weight = F.interpolate(where.float(), features.shape[-2:], mode="area")
    weight = weight / weight.sum().clamp_min(1e-6)
    mean = (features * weight).sum((2, 3))
    variance = ((features - mean[..., None, None]) ** 2 * weight).sum((2, 3))
    return torch.cat([mean, (variance.sqrt() + _FLAT).log()], dim=1)[0].cpu()
