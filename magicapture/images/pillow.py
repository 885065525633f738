"""Tensors to Pillow pictures and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """An image (3,H,W) or (1,H,W) in 0..1, on any device, as a Pillow picture; clamped."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    values = pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)
    return Image.fromarray(np.ascontiguousarray(values.numpy()))


def from_pil(picture: Image.Image) -> Tensor:
    """A Pillow picture of 8 bits a channel as an image (C,H,W), float32 in 0..1."""
    values = np.array(picture)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values)).float() / 255
