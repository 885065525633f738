"""What several nodes share: lists of pictures, pictures to show, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..magicapture.adapters import Adapter
from ..magicapture.images import from_pil
from ..magicapture.prompts import as_embeddings
from ._comfy import images_from_socket, masks_from_socket

if TYPE_CHECKING:
    from PIL.Image import Image


def single_images(batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The pictures (3,H,W) of a list of IMAGE batches, whatever their sizes."""
    return tuple(image for batch in batches for image in images_from_socket(batch))


def single_masks(batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The masks (1,H,W) of a list of MASK batches."""
    return tuple(mask for batch in batches for mask in masks_from_socket(batch))


def pixels(image: Image) -> Tensor:
    """A Pillow picture as an image (1,3,H,W) in 0..1."""
    return from_pil(image.convert("RGB"))[None]


def prompts_of(adapter: Adapter) -> list[str]:
    """A prompt of the adapter's training for ComfyUI; none where its concepts are not known."""
    known = {concept.role for concept in adapter.concepts} == {"subject", "style"}
    return [as_embeddings(adapter.prompt(), adapter.concepts)] if known else []
