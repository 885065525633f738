"""What a face is, and what finds, parses and (in `embed`) recognises one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from torch import Tensor


class Part(IntEnum):
    """Parts of a picture of a person, the same for every parser."""

    BACKGROUND = 0
    SKIN = 1
    BROW = 2
    EYE = 3
    GLASSES = 4
    EAR = 5
    EARRING = 6
    NOSE = 7
    MOUTH = 8
    LIP = 9
    NECK = 10
    NECKLACE = 11
    CLOTHES = 12
    HAIR = 13
    HAT = 14
    BEARD = 15


FACE_PARTS = frozenset(
    {
        Part.SKIN,
        Part.BROW,
        Part.EYE,
        Part.GLASSES,
        Part.EAR,
        Part.EARRING,
        Part.NOSE,
        Part.MOUTH,
        Part.LIP,
    }
)
"""What counts as face unless the user says otherwise."""


@dataclass(frozen=True, eq=False)
class Face:
    """A face found in an image, on the CPU.

    box: (4,) x0, y0, x1, y1 in pixels; may reach beyond the image.
    landmarks: (5,2) in pixels (x, y), pixel centres at integers: the eye on the left of the
        picture, the eye on the right, the nose, the mouth's left and right corner.
    score: how sure the detector is, 0 to 1.
    """

    box: Tensor
    landmarks: Tensor
    score: float

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        return float(self.box[2] - self.box[0])

    @property
    def height(self) -> float:
        """Height of the box in pixels."""
        return float(self.box[3] - self.box[1])

    @property
    def area(self) -> float:
        """Area of the box in pixels."""
        return self.width * self.height


class Detector(Protocol):
    """Anything that finds the faces of one image."""

    def __call__(self, image: Tensor, /) -> tuple[Face, ...]:
        """The faces of an image (3,H,W) RGB in 0..1 of any size, the largest first."""


class Parser(Protocol):
    """Anything that says which part of a person each pixel shows."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Upright heads (B,3,H,W) RGB in 0..1, cut out as by FFHQ_TEMPLATE, to their parts.

        Returns (B,H,W) int64 values of `Part`, at the size of the images.
        """
