"""Attention outside the region that a token is for, by mass and by peak."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..losses.equations import FLAT, leakage
from .metric import METRICS, Metric


class Leakage(NamedTuple):
    """mass: share of the attention outside the region; peak: highest attention outside it, as a
    share of the map's highest. Both (R,) in 0..1.

    They differ: a token attended to weakly everywhere has mass outside and no peak there.
    """

    mass: Tensor
    peak: Tensor


def leakages(values: Tensor, inside: Tensor) -> Leakage:
    """Of attention maps (R,h,w) and the regions (R,1,H,W) they are for, 1 = inside.

    A cell counts for the peak where at most half of it is inside.
    """
    regions = F.interpolate(inside.float(), values.shape[-2:], mode="area")[:, 0]
    outside = (values * (regions <= 0.5)).amax(dim=(-2, -1))
    return Leakage(
        leakage(values, inside, "none"), outside / values.amax(dim=(-2, -1)).clamp_min(FLAT)
    )


_PEAK = "The highest attention outside the region as a share of the map's highest."

for metric in (
    Metric(
        "leakage_subject",
        help="Share of the attention to the person's token that lies outside the face, on noised "
        "true compositions.",
        title="leakage of subject",
        high=1.0,
        better="lower",
        place="compared",
    ),
    Metric(
        "leakage_style",
        help="Share of the attention to the style's token that lies on the face.",
        title="leakage of style",
        high=1.0,
        better="lower",
        place="compared",
    ),
    Metric("leakage_subject_peak", help=_PEAK, high=1.0, better="lower"),
    Metric("leakage_style_peak", help=_PEAK, high=1.0, better="lower"),
):
    METRICS.add(metric)
