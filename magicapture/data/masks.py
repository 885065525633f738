"""Masks: their share of a picture, brought to a picture's size and to the latent's.

A mask is (1,H,W) or (B,1,H,W) float in 0..1 and may be soft. Where a yes or no is needed (is it
empty, is it full), a pixel counts as marked from 0.5 on.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

ASPECT_TOLERANCE = 0.01
"""How much a mask's aspect ratio may differ from its picture's, relatively."""

INVERTED = (
    "the mask marks all four corners and leaves out what lies between them, as if black were the "
    "face. White is the face, for a style as well; invert it if so."
)
"""What to say of a mask that `looks_inverted`."""

_STRAY = 1e-4  # a share this small is a few stray pixels, not a region
_CORNER = 0.05  # a corner's side, as a share of the mask's


def binarise(mask: Tensor) -> Tensor:
    """1 where the mask is at least 0.5, else 0."""
    return (mask >= 0.5).to(mask.dtype)


def area_share(mask: Tensor) -> Tensor:
    """The share of the picture that a mask covers: () for (1,H,W), (B,) for (B,1,H,W)."""
    return mask.mean(dim=(-3, -2, -1))


def is_empty(mask: Tensor) -> bool:
    """Whether a mask (1,H,W) marks nothing but a few stray pixels."""
    return float(area_share(binarise(mask))) < _STRAY


def is_full(mask: Tensor) -> bool:
    """Whether a mask (1,H,W) marks everything but a few stray pixels."""
    return is_empty(1 - binarise(mask))


def looks_inverted(mask: Tensor) -> bool:
    """Whether a face's mask (1,H,W) marks all four corners of its picture, but not the whole."""
    marked = binarise(mask)[0]
    height, width = (max(1, round(_CORNER * side)) for side in marked.shape)
    corners = [
        rows[:, columns]
        for rows in (marked[:height], marked[-height:])
        for columns in (slice(None, width), slice(-width, None))
    ]
    return all(float(corner.mean()) > 0.5 for corner in corners) and not is_full(mask)


def fit(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1,h,w) at its picture's size (H,W).

    Raises InputError when the aspect ratios differ by more than ASPECT_TOLERANCE.
    """
    height, width = mask.shape[-2:]
    if (height, width) == size:
        return mask
    if abs((width * size[0]) / (height * size[1]) - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"the mask is {width}x{height} pixels and the picture {size[1]}x{size[0]}, of another "
            "shape; make the mask from this very picture"
        )
    return F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def to_latent(mask: Tensor, downscale: int) -> Tensor:
    """A mask (1,H,W) or (B,1,H,W) at the latent's size: each cell's share of marked area."""
    return F.avg_pool2d(mask, downscale)
