"""The edge of a laid-in face: how it fades, and the band along it that is not taught."""

from __future__ import annotations

import torch
from torch import Tensor

from ..faces.masks import grown
from ..images import gaussian_blur

_SHRINK, _SOFT = 0.008, 0.005
"""How far the fading face stays away from its region's edge, and how softly it fades: shares of
the picture's short side."""

_TOUCHED = 0.05  # a pixel with less of the portrait's face in it shows none


def opacity(region: Tensor) -> Tensor:
    """How much of a face laid into a region (1,H,W) shows: 0 at its edge, 1 a little further in."""
    short = min(region.shape[-2:])
    inner = grown(_inside(region), -round(_SHRINK * short))
    faded = gaussian_blur(inner[None], max(_SOFT * short, 0.5), edge="reflect")[0]
    return faded * (region > 0)


def taught(region: Tensor, place: Tensor, band: float) -> Tensor:
    """Where a label may be taught (1,H,W), 0 or 1.

    Not along the edge of the laid-in face, in a band of so many pixels, and not where something
    of the portrait's own face is left, or within half a band of it. region: of the laid-in face,
    place: of the portrait's own, (1,H,W) in 0..1.
    """
    inside, half = _inside(region), round(band / 2)
    left = (place > _TOUCHED).to(place) * (1 - inside)
    edge = grown(inside, half) - grown(inside, -half)
    return 1 - torch.maximum(grown(left, half), edge)


def _inside(mask: Tensor) -> Tensor:
    return (mask > 0.5).float()
