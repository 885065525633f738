"""The canvas: picture, face mask and labels, painted layer by layer from back to front."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from .colours import Array, Colour, planes
from .traits import Pose

HEAD = 0.53  # head units to half pictures: the face takes a little over half the width
HEAD_AT = (0.0, -0.09)  # the middle of the eye line, in half pictures from the centre

Window = tuple[slice, slice]


class Label(IntEnum):
    """Parts of the picture; the numbers of the usual face parsers, with the beard added."""

    BACKGROUND = 0
    SKIN = 1
    LEFT_BROW = 2
    RIGHT_BROW = 3
    LEFT_EYE = 4
    RIGHT_EYE = 5
    GLASSES = 6
    LEFT_EAR = 7
    RIGHT_EAR = 8
    NOSE = 10
    MOUTH = 11
    UPPER_LIP = 12
    LOWER_LIP = 13
    NECK = 14
    CLOTHES = 16
    HAIR = 17
    HAT = 18
    BEARD = 19


FACE_LABELS = frozenset(
    label
    for label in Label
    if label not in (Label.BACKGROUND, Label.NECK, Label.CLOTHES, Label.HAIR, Label.HAT)
)


@dataclass(frozen=True)
class Frame:
    """Coordinates fixed to the head or the body: u to the right, v down, in head units."""

    u: Array
    v: Array
    pixel: float  # width of a pixel in head units
    scale: float  # pixels in a head unit
    angle: float
    origin: tuple[float, float]  # pixels

    @classmethod
    def of(cls, size: int, pose: Pose, tilted: bool) -> Frame:
        """The frame of the head (tilted) or of the body (upright) in a size x size picture."""
        scale = HEAD * pose.scale * size / 2
        x0 = (HEAD_AT[0] + pose.shift[0] + 1) * size / 2 - 0.5
        y0 = (HEAD_AT[1] + pose.shift[1] + 1) * size / 2 - 0.5
        angle = pose.tilt if tilted else 0.0
        x = ((np.arange(size, dtype=np.float32) - np.float32(x0)) / np.float32(scale))[None]
        y = ((np.arange(size, dtype=np.float32) - np.float32(y0)) / np.float32(scale))[:, None]
        c, s = np.float32(cos(angle)), np.float32(sin(angle))
        return cls(c * x + s * y, c * y - s * x, 1 / scale, scale, angle, (x0, y0))

    def to_pixels(self, u: float, v: float) -> tuple[float, float]:
        """Pixel position (x, y) of a point; whole numbers are pixel centres."""
        c, s = cos(self.angle), sin(self.angle)
        return (
            self.origin[0] + self.scale * (c * u - s * v),
            self.origin[1] + self.scale * (s * u + c * v),
        )

    def window(self, left: float, top: float, right: float, bottom: float) -> Window:
        """The pixels that hold a rectangle given in this frame, with a pixel to spare."""
        size = self.u.shape[0]
        corners = [self.to_pixels(a, b) for a in (left, right) for b in (top, bottom)]
        x = [corner[0] for corner in corners]
        y = [corner[1] for corner in corners]

        def span(low: float, high: float) -> slice:
            start = min(max(int(low) - 1, 0), size - 1)
            return slice(start, max(min(int(high) + 3, size), start + 1))

        return (span(min(y), max(y)), span(min(x), max(x)))

    def at(self, window: Window, u: float = 0.0, v: float = 0.0) -> tuple[Array, Array]:
        """Coordinates in a window, relative to the point (u, v)."""
        return self.u[window] - np.float32(u), self.v[window] - np.float32(v)


class Canvas:
    """A square picture (3, H, W), the face's coverage (H, W) and part labels (H, W)."""

    def __init__(self, size: int) -> None:
        self.image: Array = np.zeros((3, size, size), np.float32)
        self.mask: Array = np.zeros((size, size), np.float32)
        self.labels: NDArray[np.uint8] = np.zeros((size, size), np.uint8)
        self.everywhere: Window = (slice(0, size), slice(0, size))

    def paint(
        self, alpha: Array, colour: Colour | Array, label: Label, window: Window | None = None
    ) -> None:
        """Lays a part over the picture: alpha (h, w) 0..1, colour one or (3, h, w)."""
        window = window or self.everywhere
        self.tint(alpha, colour, window)
        mask = self.mask[window]
        if label in FACE_LABELS:
            mask += alpha * (1.0 - mask)
        else:
            mask *= 1.0 - alpha
        self.labels[window][alpha >= 0.5] = label

    def tint(self, alpha: Array, colour: Colour | Array, window: Window | None = None) -> None:
        """Colours what is there, without adding a part."""
        part = self.image[(slice(None), *(window or self.everywhere))]
        paint = planes(colour) if isinstance(colour, tuple) else colour
        part += alpha * (paint - part)
