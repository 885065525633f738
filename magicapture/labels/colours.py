"""The colours that a style's medium gives the person's face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from ..data import Photo
from ..images import LUMA
from .choosing import mask_of

LEVELS = (0.005, 0.995)
"""Quantiles of a face's luma taken for black and white."""

_YCC = torch.tensor([[*LUMA], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
"""Luma and two chroma differences of R, G, B (Rec. 601)."""


@dataclass(frozen=True, eq=False)
class Tones:
    """The colours of a face.

    black, white: about the luma of the pupils and of the whites of the eyes, whatever the skin.
    middle: the median luma, 0..1 from black to white. mean and spread of its chroma, (2,1) each.
    """

    black: float
    white: float
    middle: float
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, *photos: Photo) -> Tones:
        """Of all the faces in some photos together."""
        pixels = [photo.image.float()[:, mask_of(photo)[0] > 0.5] for photo in photos]
        luma, chroma = (_YCC @ torch.cat(pixels, dim=1)).split([1, 2])
        black, middle, white = numpy.quantile(luma.numpy(), (LEVELS[0], 0.5, LEVELS[1]))
        mean, spread = chroma.mean(1, keepdim=True), chroma.std(1, keepdim=True)
        share = float((middle - black) / max(white - black, _LEAST))
        return cls(float(black), float(white), min(max(share, 0.02), 0.98), mean, spread)


_LEAST = 0.1  # between black and white, so that a flat picture is not torn apart


@dataclass(frozen=True, eq=False)
class Palette:
    """What turns the person's photos into the style's medium, each for itself.

    The skin is the same in all of a person's photos, so what a photo's face differs by from the
    others is its light, and goes: its luma runs from black to white with the middle where the
    photos have it, its chroma has their mean. Then the medium: luma goes from the style's black to
    its white, which tell how light a pastel is. Chroma c is multiplied by k, the style's spread
    over the person's, at most 1; its mean becomes k^2 m + (1 - k^2) m_style. A medium that keeps
    colours keeps those of the skin, and a grey or sepia one gives its own.
    """

    style: Tones
    photos: Sequence[Tones]

    @classmethod
    def of(cls, portraits: Sequence[Photo], photos: Sequence[Photo]) -> Palette:
        """Of a style's portraits and a person's photos, by the faces in them."""
        return cls(Tones.of(*portraits), [Tones.of(photo) for photo in photos])

    def coloured(self, image: Tensor, photo: int) -> Tensor:
        """The image (3,H,W) of a photo, by its number, in the colours of the medium."""
        style, own = self.style, self.photos[photo]
        luma, chroma = (_YCC @ image.float().flatten(1)).split([1, 2])
        lit = (luma - own.black) / max(own.white - own.black, _LEAST)
        lit = torch.where(lit > 0, lit.clamp_min(1e-6) ** self._gamma(own), lit)
        k = (style.spread.norm() / self._spread.norm().clamp_min(1e-4)).clamp(max=1)
        wanted = torch.lerp(style.mean, self._mean, k**2)
        shown = [lit * (style.white - style.black) + style.black, (chroma - own.mean) * k + wanted]
        return (torch.linalg.inv(_YCC) @ torch.cat(shown)).view_as(image).clamp(0, 1)

    def _gamma(self, own: Tones) -> float:
        """The power that takes a photo's middle to that of all."""
        middle = float(numpy.median([tones.middle for tones in self.photos]))
        return float(numpy.log(middle) / numpy.log(own.middle))

    @property
    def _mean(self) -> Tensor:
        """The chroma of the person's skin: the median photo's."""
        return torch.stack([tones.mean for tones in self.photos]).median(dim=0).values

    @property
    def _spread(self) -> Tensor:
        return torch.stack([tones.spread for tones in self.photos]).mean(dim=0)
