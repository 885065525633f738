"""The edge of a laid-in face: how it fades, what of it shows, and the band that is not taught."""

from __future__ import annotations

import torch
from torch import Tensor

from ..faces.masks import grown
from ..images import gaussian_blur, luma

_SHRINK, _SOFT = 0.008, 0.005
"""How far the fading face stays away from its region's edge, and how softly it fades: shares of
the picture's short side."""

_TOUCHED = 0.05  # a pixel with less of a face in it shows none

_FLAT = 1e-3  # a portrait whose luma rises less than this a pixel is flat


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


def steepness(label: Tensor, portrait: Tensor, region: Tensor) -> float:
    """How steep a label (3,H,W) is where the laid-in face fades, as a share of the portrait there.

    The mean length of the gradient of luma, of the one over that of the other; at 1 no seam is to
    be seen. region: of the laid-in face, (1,H,W).
    """
    shows = opacity(region)
    return relative_slope(label, portrait, (shows > _TOUCHED) & (shows < 1 - _TOUCHED))


def relative_slope(image: Tensor, other: Tensor, where: Tensor) -> float:
    """The mean length of an image's gradient of luma in a place, over that of another image there.

    Both (3,H,W); where: (1,H,W), true in the place.
    """
    made, own = (_slope(one)[where].mean() for one in (image, other))
    return float(made / own.clamp_min(_FLAT))


def _slope(image: Tensor) -> Tensor:
    """The length of the gradient of luma (1,H,W) of an image (3,H,W), a pixel."""
    down, right = torch.gradient(luma(image.float()), dim=(-2, -1))
    return torch.hypot(down, right)


def _inside(mask: Tensor) -> Tensor:
    return (mask > 0.5).float()
