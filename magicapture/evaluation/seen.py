"""What is kept of a picture once it has been looked at: some 20 KB, so that thousands fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..faces.masks import face_mask
from ..faces.protocols import Face
from ..html import jpeg
from ..images import resize
from ..metrics.shown import small
from .models import Models
from .tone import skin_tone

SIDE = 160
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture as measures know it.

    faces: how many are found. face (D,): the unit embedding of the one that counts. whole,
    faceless (E,): CLIP's, of the picture and with its faces masked out. small (3,32,32). tone: of
    the skin, in degrees. thumbnail: a JPEG.
    """

    name: str
    faces: int
    face: Tensor | None
    whole: Tensor | None
    faceless: Tensor | None
    small: Tensor
    tone: float | None
    thumbnail: bytes


def see(
    image: Tensor,
    name: str,
    faces: Sequence[Face],
    face: tuple[int, Tensor | None] | None,
    models: Models,
    *,
    own_mask: Tensor | None = None,
    tones: bool = False,
) -> Seen:
    """Look at a picture (3,H,W) in which these faces were found.

    face: which of them counts, and its embedding (D,). own_mask: a mask (1,H,W) that is masked out
    as well. tones: whether to read the skin's.
    """
    masks = [face_mask(image, one, models.analyzer.parser, others=faces) for one in faces]
    whole = faceless = None
    if models.pictures is not None:
        covered = [mask.mask for mask in masks] + ([] if own_mask is None else [own_mask])
        both = torch.stack([image, masked_out(image, covered)])
        whole, faceless = models.pictures.of_images(both).float().cpu()
    tone = None
    if tones and face is not None and face[0] < len(faces):
        tone = skin_tone(image, faces[face[0]], masks[face[0]])
    return Seen(
        name,
        len(faces),
        None if face is None else face[1],
        whole,
        faceless,
        small(square(image)[None])[0],
        tone,
        jpeg(thumbnail(image)),
    )


def masked_out(image: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """An image (3,H,W) whose faces have the mean colour of the rest; masks (1,H,W) are 1 on them.

    The paper does not say how it masks. Of an even colour the rest's own mean is the one that adds
    nothing: a portrait in black and white stays so. Leaving out patches would need an encoder's
    insides, which ComfyUI's and transformers' do not share.
    """
    if not masks:
        return image
    inside = torch.stack(list(masks)).amax(0).clamp(0, 1).to(image)
    outside = 1 - inside
    mean = (image * outside).sum((1, 2), keepdim=True) / outside.sum().clamp_min(1e-6)
    return image * outside + mean * inside


def square(image: Tensor) -> Tensor:
    """The central square of an image (C,H,W), which training sees as well."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def thumbnail(image: Tensor) -> Tensor:
    """An image (3,H,W), its longer side SIDE pixels."""
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
