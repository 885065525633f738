"""A detector for pictures of any shape, made of one for square ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .align import ARCFACE_TEMPLATE, MIRRORED, invert, similarity, transform, warp
from .protocols import Face

SIDES = (640, 320, 1280)
"""The longer side, in pixels, at which a picture is shown to a detector, until a face is found.

Faces that fill the picture are found at 320, small ones in large pictures at 1280.
"""

Finder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A square picture (S,S,3) BGR to its faces (N,15): x0, y0, x1, y1, five points, score."""

_SAME = 0.3  # of a face's width: how far apart two finds of one face may be
_WIDEST = 300.0  # pixels: a wider face is scaled down before it is looked at again
_WIDTH = 76.0  # of the face in ARCFACE_TEMPLATE, in pixels, as detectors draw their boxes
_GRID = 3
_SHARES = [
    0.3 * (7 / 3) ** (k / 8) for k in range(_GRID**2)
]  # 0.3 to 0.7 of a cell: a face's width


@dataclass(frozen=True)
class SquareDetector:
    """A detector made of what finds faces in square pictures; fits `Detector`.

    Landmarks move with a picture's size and a head's tilt, by 2 to 5 % of the face's width. So
    each face is looked at again on one sheet that shows it upright at nine sizes; picture and
    sheet are seen in the mirror, too, and all finds are averaged. YuNet and RetinaFace then agree
    within 2.4 % of its width on 29 photos, instead of 4.4 %.

    canvas: the one side that `find` can take, or None where it takes any multiple of 32.
    sides: in this order, until a face is found; those beyond the canvas are left out.
    """

    find: Finder
    canvas: int | None = None
    sides: tuple[int, ...] = SIDES

    def __call__(self, image: Tensor, /) -> tuple[Face, ...]:
        """The faces of an image (3,H,W) in 0..1, the largest first."""
        image = image.float().cpu()
        for side in self.sides:
            if self.canvas and side > self.canvas:
                continue
            if faces := self._at(image, side):
                again = (self._again(image, face) for face in faces)
                return tuple(sorted(again, key=lambda face: -face.area))
        return ()

    def _at(self, image: Tensor, side: int) -> list[Face]:
        """The faces of an image whose longer side is brought to `side`, beside black."""
        small, share = _scaled(image, side / max(image.shape[-2:]))
        points, scores = self._both_ways(small, self.canvas or side)
        found = ((p + 0.5) / share - 0.5 for p in points)
        return [
            Face(p[:2].reshape(4), p[2:], float(score))
            for p, score in zip(found, scores, strict=True)
        ]

    def _again(self, image: Tensor, face: Face) -> Face:
        """The face with its landmarks averaged with those on a sheet that shows it upright."""
        small, shrunk = _scaled(image, min(1.0, _WIDEST / face.width))
        landmarks = (face.landmarks + 0.5) * shrunk - 0.5
        side = self.canvas or SIDES[0]
        cell = side // _GRID
        sheet, looks = torch.zeros(3, side, side), []
        corners = product(range(_GRID), repeat=2)
        for share, (x, y) in zip(_SHARES, corners, strict=True):
            scale, middle = share * cell / _WIDTH, (cell - 1) / 2
            layout = (ARCFACE_TEMPLATE - ARCFACE_TEMPLATE.mean(dim=0)) * scale + middle
            matrix = similarity(landmarks[None], layout)
            shown = warp(small[None], matrix, cell, antialias=True)[0]
            sheet[:, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = shown
            matrix[..., 2] += cell * torch.tensor([x, y])
            looks.append((matrix, share * cell))
        points = self._both_ways(sheet, side)[0][:, 2:]
        found = [landmarks]
        for matrix, width in looks:
            expected = transform(matrix, landmarks[None])[0]
            if (nearest := _nearest(expected, points, width)) is not None:
                found.append(transform(invert(matrix), points[nearest][None])[0])
        return replace(face, landmarks=(torch.stack(found).mean(dim=0) + 0.5) / shrunk - 0.5)

    def _both_ways(self, image: Tensor, canvas: int) -> tuple[Tensor, Tensor]:
        """The faces of an image, averaged with those of its mirror image, as `_points` gives."""
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
        points, scores = self._points(pixels, canvas)
        mirrored, _ = self._points(pixels[:, ::-1], canvas)
        mirrored = mirrored[:, [0, 1, *(2 + m for m in MIRRORED)]]
        mirrored[..., 0] = image.shape[-1] - 1 - mirrored[..., 0]
        mirrored[:, :2, 0] = mirrored[:, [1, 0], 0]  # the box's left is its right
        for one in points:
            nearest = _nearest(one[2:], mirrored[:, 2:], float(one[1, 0] - one[0, 0]))
            if nearest is not None:
                one.add_(mirrored[nearest]).div_(2)
        return points, scores

    def _points(self, picture: NDArray[np.uint8], side: int) -> tuple[Tensor, Tensor]:
        """The faces of a picture (h,w,3): corners and landmarks (N,7,2), scores (N,)."""
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[: picture.shape[0], : picture.shape[1]] = picture
        rows = torch.from_numpy(np.array(self.find(canvas), np.float32).reshape(-1, 15))
        rows = rows[rows.isfinite().all(dim=1)]
        return rows[:, :14].reshape(-1, 7, 2), rows[:, 14]


def _scaled(image: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """An image (3,H,W) scaled to whole pixels, and by how much in x and y (2,)."""
    height, width = image.shape[-2:]
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)
    return small[0], torch.tensor([size[1] / width, size[0] / height])


def _nearest(landmarks: Tensor, others: Tensor, width: float) -> int | None:
    """Which of others (N,5,2) are landmarks (5,2) of the same face, this wide; None where none."""
    if not len(others):
        return None
    apart = (others.mean(dim=1) - landmarks.mean(dim=0)).norm(dim=-1)
    nearest = int(apart.argmin())
    return nearest if apart[nearest] < _SAME * width else None
