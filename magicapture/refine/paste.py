"""A face out of a picture, aligned, and back into it under a feathered mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..faces.align import FFHQ_TEMPLATE, HEAD_SIZE, invert, similarity, transform, warp
from ..faces.masks import MaskSettings, face_mask
from ..faces.protocols import FACE_PARTS, Face, Parser, Part
from ..images import gaussian_blur

PASTED_PARTS = FACE_PARTS | {Part.HAIR, Part.BEARD}
"""What of an aligned head replaces the picture: what face restorers are made to restore."""

FEATHER = 15.6
"""Standard deviation of the mask's edge in pixels of the 512x512 head.

Two Gaussian blurs of 11, which is what GFPGAN's own paste does, are one of 11 * sqrt(2).
"""

BORDER = 10
"""Pixels at the aligned head's edge that are never pasted: there the crop ends, not the face."""

_GREY = (132 / 255, 133 / 255, 135 / 255)  # beyond the picture's edge, as restorers were trained
_LEAST = 0.5 / 255  # a mask below it changes no 8-bit pixel and is taken as 0


def cut_out(image: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """The aligned head (1,3,512,512) of an image (3,H,W) with landmarks (5,2), and its map.

    The map (1,2,3) takes image pixels to the head's. Raises InputError where the landmarks
    coincide.
    """
    matrix = similarity(landmarks[None], FFHQ_TEMPLATE)
    top, left, height, width = _window(matrix, image.shape[-2:])
    grey = image.new_tensor(_GREY).view(1, 3, 1, 1)
    part = image[None, :, top : top + height, left : left + width]
    head = warp(part - grey, _shifted(matrix, left, top), HEAD_SIZE, antialias=True)
    return head + grey, matrix


def parsed_mask(
    parser: Parser, heads: Tensor, parts: Iterable[Part] = PASTED_PARTS, feather: float = FEATHER
) -> Tensor:
    """The feathered mask (B,1,512,512) of some parts of aligned heads (B,3,512,512)."""
    wanted = torch.tensor([int(part) for part in parts], device=heads.device)
    return feathered(torch.isin(parser(heads), wanted)[:, None].float(), feather)


def drawn_mask(head: Tensor, landmarks: Tensor, feather: float = FEATHER) -> Tensor:
    """The feathered mask (1,1,512,512) for want of a parser: an oval laid over the landmarks.

    head: (1,3,512,512). landmarks: (1,5,2) in its pixels. The oval reaches from forehead to chin
    and leaves out hair and ears; a hand or hair before the face is not seen.
    """
    box = torch.tensor([0.0, 0.0, HEAD_SIZE, HEAD_SIZE])
    face = Face(box, landmarks[0].cpu(), score=1)
    oval = face_mask(head[0].cpu(), face, None, MaskSettings(grow=0, feather=0)).mask
    return feathered(oval[None].to(head.device), feather)


def feathered(mask: Tensor, feather: float = FEATHER) -> Tensor:
    """A mask (B,1,512,512) with a soft edge, and 0 at the head's border."""
    mask = gaussian_blur(mask, feather, edge="reflect", reach=4)
    inner = torch.zeros_like(mask)
    inner[..., BORDER:-BORDER, BORDER:-BORDER] = mask[..., BORDER:-BORDER, BORDER:-BORDER]
    return inner


@dataclass(frozen=True, eq=False)
class Patch:
    """A head back in the picture's pixels: what to paste, where, and how much of each pixel.

    pixels: (3,h,w) in 0..1. mask: (1,h,w), 0 where the picture stays. top, left: the place of the
    first pixel.
    """

    pixels: Tensor
    mask: Tensor
    top: int
    left: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the picture that the patch covers."""
        height, width = self.mask.shape[-2:]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def onto(self, image: Tensor, strength: float = 1) -> Tensor:
        """An image (3,H,W) with the patch blended in; pixels outside the mask are bit-equal.

        Raises InputError for a strength outside 0..1.
        """
        if not 0 <= strength <= 1:
            raise InputError(f"The strength is {strength:g}; expected a number from 0 to 1.")
        rows, columns = self.place
        result = image.clone()
        under = image[:, rows, columns]
        blended = under + strength * self.mask * (self.pixels - under)
        result[:, rows, columns] = torch.where(self.mask > 0, blended, under)
        return result


def put_back(head: Tensor, mask: Tensor, matrix: Tensor, size: tuple[int, ...]) -> Patch:
    """An aligned head (1,3,512,512) and its mask (1,1,512,512) as a patch for its picture.

    matrix: (1,2,3), from the picture to the head, as `cut_out` gives it. size: the picture's
    (height, width).
    """
    top, left, height, width = _window(matrix, size)
    back = invert(_shifted(matrix, left, top))
    both = warp(torch.cat([head, mask], dim=1), back, (height, width), antialias=True)[0]
    weights = torch.where(both[3:] < _LEAST, 0, both[3:].clamp(0, 1))
    return Patch(both[:3].clamp(0, 1), weights, top, left)


def _window(matrix: Tensor, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of a picture that the head's square touches.

    At least one pixel, also for a head beside the picture.
    """
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) * HEAD_SIZE - 0.5
    corners = transform(invert(matrix), square.to(matrix))[0]
    last = corners.new_tensor([size[1] - 1, size[0] - 1])
    # Two pixels beyond, which bilinear sampling at the square's edge may reach.
    low = (corners.amin(dim=0).floor() - 2).clamp_min(0).minimum(last)
    high = (corners.amax(dim=0).ceil() + 2).minimum(last).maximum(low)
    left, top = (int(value) for value in low)
    width, height = (int(value) + 1 for value in high - low)
    return top, left, height, width


def _shifted(matrix: Tensor, left: int, top: int) -> Tensor:
    """A map from a picture's pixels, as one from those of its part that starts at (left, top)."""
    start = matrix.new_tensor([[float(left)], [float(top)]])
    return torch.cat([matrix[..., :2], matrix[..., 2:] + matrix[..., :2] @ start], dim=-1)
