"""Pictures for the tests of data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from magicapture.data import ReferenceSet

Disc = Callable[..., Tensor]


@pytest.fixture
def disc() -> Disc:
    """Makes a mask (1,H,W) that is 1 on a disc."""

    def make(height: int, width: int, x: float, y: float, radius: float) -> Tensor:
        rows = torch.arange(height)[:, None]
        columns = torch.arange(width)[None]
        inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        return inside[None].float()

    return make


@pytest.fixture
def reference_set(disc: Disc) -> Callable[..., ReferenceSet]:
    """Makes a good set of small random photos whose masks are discs."""

    def make(count: int = 3, **known: object) -> ReferenceSet:
        generator = torch.Generator().manual_seed(7)
        images = tuple(torch.rand(3, 80 + 8 * i, 96, generator=generator) for i in range(count))
        masks = tuple(disc(image.shape[1], 96, 48, 40, 16) for image in images)
        return ReferenceSet.of(images, **{"face_masks": masks, **known})

    return make
