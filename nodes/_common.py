"""What several nodes share: lists of pictures, pictures to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..magicapture.images import from_pil
from ._comfy import images_from_socket, masks_from_socket

if TYPE_CHECKING:
    from PIL.Image import Image


def single_images(batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The pictures (3,H,W) of a list of IMAGE batches, whatever their sizes."""
    return tuple(image for batch in batches for image in images_from_socket(batch))


def single_masks(batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The masks (1,H,W) of a list of MASK batches."""
    return tuple(mask for batch in batches for mask in masks_from_socket(batch))


def side_by_side(left: Image, right: Image) -> Image:
    """Two pictures beside each other, the right one brought to the left one's height."""
    from PIL import Image as Pillow

    width = round(right.width * left.height / right.height)
    both = Pillow.new("RGB", (left.width + width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right.resize((width, left.height), Pillow.Resampling.LANCZOS), (left.width, 0))
    return both


def pixels(image: Image) -> Tensor:
    """A Pillow picture as an image (1,3,H,W) in 0..1."""
    return from_pil(image.convert("RGB"))[None]
