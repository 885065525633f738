"""Masks and landmarks as files beside a photo, which `load_folder` reads again."""

from __future__ import annotations

import json
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..files import atomic_write
from ..images import to_pil


def write_mask(mask: Tensor, file: Path, size: tuple[int, int]) -> None:
    """Write a mask (1,H,W) as a grey PNG of its photo's height and width in the file."""
    if tuple(mask.shape[-2:]) != size:
        mask = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    picture = to_pil(mask)
    atomic_write(file, lambda temporary: picture.save(temporary, format="PNG"))


def write_landmarks(
    landmarks: Tensor, file: Path, loaded: tuple[int, int], size: tuple[int, int]
) -> None:
    """Write landmarks (5,2) as JSON, in the file's pixels.

    loaded, size: the photo's height and width as it was loaded, and in its file.
    """
    scale = landmarks.new_tensor([size[1] / loaded[1], size[0] / loaded[0]])
    points = (landmarks + 0.5) * scale - 0.5
    text = json.dumps([[round(float(v), 2) for v in point] for point in points]) + "\n"
    atomic_write(file, lambda temporary: temporary.write_text(text, "utf-8"))
