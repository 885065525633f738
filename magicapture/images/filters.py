"""What is done to pictures as tensors: blur, brightness, contrast, another size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""The share of R, G and B in a picture's brightness (Rec. 601)."""

_CONTRAST_LUMA = (0.2989, 0.587, 0.114)  # torchvision's, which `adjust_contrast` is held to


def luma(images: Tensor) -> Tensor:
    """The brightness (...,1,H,W) of RGB images (...,3,H,W)."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=-3, keepdim=True)


def gaussian_blur(
    planes: Tensor,
    sigma: float,
    *,
    edge: Literal["replicate", "reflect", "constant"] = "replicate",
    reach: float = 3,
) -> Tensor:
    """Planes (B,C,H,W) blurred by a Gaussian of `sigma` pixels, cut off at `reach` sigmas.

    edge: what lies beyond the planes: the pixel at the edge, the mirror image without that pixel,
    or 0. A sigma of 0 or less leaves them. One axis after the other, which for wide Gaussians is a
    hundred times less work than both at once.
    """
    if sigma <= 0:
        return planes
    radius = min(max(1, round(reach * sigma)), *(side - 1 for side in planes.shape[-2:]))
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    channels = planes.shape[1]
    line = (weights / weights.sum()).to(planes).view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    padded = F.pad(planes, [radius] * 4, mode=edge)
    return F.conv2d(F.conv2d(padded, line, groups=channels), line.mT, groups=channels)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (...,C,H,W) at another height and width, bicubic, without aliasing, within 0..1."""
    if tuple(images.shape[-2:]) == size:
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    sized = F.interpolate(flat, size, mode="bicubic", antialias=True, align_corners=False)
    return sized.clamp(0, 1).reshape(*images.shape[:-2], *size)


def adjust_brightness(images: Tensor, factor: float) -> Tensor:
    """Images in 0..1 times a factor, within 0..1."""
    return images.mul(factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: float) -> Tensor:
    """Images (...,3,H,W) in 0..1 moved away from their mean brightness by a factor, within 0..1."""
    red, green, blue = images.unbind(dim=-3)
    r, g, b = _CONTRAST_LUMA
    grey = red.mul(r).add_(green, alpha=g).add_(blue, alpha=b)[..., None, :, :]
    mean = grey.mean(dim=(-3, -2, -1), keepdim=True)
    return images.mul(factor).add_(mean, alpha=1 - factor).clamp_(0, 1)
