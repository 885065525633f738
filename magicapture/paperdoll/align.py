"""Faces brought to the face embedders' 112 x 112 template, for training the embedders."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..faces.align import ARCFACE_TEMPLATE

TEMPLATE = ARCFACE_TEMPLATE.numpy()


def similarity(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The shift, turn and scale (B, 2, 3) that take template points nearest to points (B, 5, 2)."""
    source = TEMPLATE - TEMPLATE.mean(0)
    middle = points.mean(1, keepdims=True)
    target = points - middle
    power = (source**2).sum()
    a = (target * source).sum((1, 2)) / power  # scale * cos
    b = (target[..., 1] * source[:, 0] - target[..., 0] * source[:, 1]).sum(1) / power
    linear = np.stack([np.stack([a, -b], -1), np.stack([b, a], -1)], -2)
    shift = middle[:, 0] - np.einsum("bij,j->bi", linear, TEMPLATE.mean(0))
    return np.concatenate([linear, shift[..., None]], -1).astype(np.float32)


def crops(images: Tensor, points: NDArray[np.float32], size: int = 112) -> Tensor:
    """Aligned faces (B, 3, size, size) of pictures (B, 3, H, W) with landmarks in pixels."""
    height, width = images.shape[-2:]
    matrix = torch.from_numpy(similarity(points)).to(images)
    steps = (torch.arange(size, device=images.device) + 0.5) * (112 / size) - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1).to(images)
    at = torch.einsum("bij,hwj->bhwi", matrix, places)
    limits = torch.tensor([width, height], device=images.device)
    return F.grid_sample(images, (2 * at + 1) / limits - 1, align_corners=False)
