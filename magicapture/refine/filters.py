"""The Gaussian blur that pasting and matching share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian(planes: Tensor, deviation: float, *, mirrored: bool = False) -> Tensor:
    """Planes (B,C,H,W) under a Gaussian of a deviation in pixels, cut off at four deviations.

    Beyond the edge lies 0, or the mirror image without the edge pixel itself, as in OpenCV. One
    axis after the other, which for wide ones is a hundred times less work than both at once.
    """
    if deviation <= 0:
        return planes
    radius = min(max(1, round(4 * deviation)), *(side - 1 for side in planes.shape[-2:]))
    place = torch.arange(-radius, radius + 1) / deviation
    line = torch.exp(-0.5 * place.square()).to(planes)
    channels = planes.shape[1]
    line = (line / line.sum()).view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    mode = "reflect" if mirrored else "constant"
    padded = F.pad(planes, [radius] * 4, mode=mode)
    return F.conv2d(F.conv2d(padded, line, groups=channels), line.mT, groups=channels)
