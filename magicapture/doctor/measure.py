"""What can be measured of a face in a photo: pose, sharpness, light, cover."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.align import ARCFACE_TEMPLATE, FACE_SIZE, MIRRORED, similarity, warp
from ..faces.protocols import Part
from ..images import luma

_NOSE_AHEAD, _MOUTH_AHEAD = 15.0, 3.0
"""How far nose tip and mouth corners lie before the eyes, in pixels of a 112x112 face."""

_LEVEL = -13.0
"""The pitch that faces looking into the camera seem to have: the median of 29 photos."""

_INNER = 0.62  # of the aligned face's side: from brows to mouth, without background


@dataclass(frozen=True)
class Angles:
    """How a head is turned, in degrees; 0 looks into the camera.

    yaw: positive to the right of the picture. pitch: positive up. roll: positive clockwise.
    """

    yaw: float
    pitch: float
    roll: float


def angles(landmarks: Tensor) -> Angles:
    """A head's angles from its landmarks (5,2): yaw and roll within some 15 degrees.

    The pitch hangs on the height of one point, the nose, and is rough: within some 40.

    The best weak-perspective camera for a face of average proportions: the two rows of the 2x3
    least-squares map from its points to the landmarks, made a rotation.
    """
    face = _average_face()
    seen = landmarks.float() - landmarks.float().mean(dim=0)
    rows = torch.linalg.lstsq(face, seen).solution.T  # (2,3)
    u, _, v = torch.linalg.svd(rows, full_matrices=False)
    right, down = u @ v
    ahead = torch.linalg.cross(right, down)
    roll = math.atan2(float(down[0]), float(right[0]))
    x, y = float(right[2]), float(down[2])  # where the nose points, as the camera sees it
    across = x * math.cos(roll) + y * math.sin(roll)
    along = y * math.cos(roll) - x * math.sin(roll)
    yaw = math.degrees(math.asin(max(-1.0, min(1.0, across))))
    pitch = math.degrees(math.atan2(-along, float(ahead[2])))
    return Angles(yaw, pitch - _LEVEL, math.degrees(roll))


def _average_face() -> Tensor:
    """Eyes, nose and mouth corners (5,3) of an average face about their mean: x, y, ahead."""
    mirrored = ARCFACE_TEMPLATE[MIRRORED] * torch.tensor([-1.0, 1.0])
    mirrored[:, 0] += 2 * ARCFACE_TEMPLATE[:, 0].mean()
    flat = (ARCFACE_TEMPLATE + mirrored) / 2
    ahead = torch.tensor([0.0, 0.0, _NOSE_AHEAD, _MOUTH_AHEAD, _MOUTH_AHEAD])
    face = torch.cat([flat, ahead[:, None]], dim=1)
    return face - face.mean(dim=0)


def aligned(image: Tensor, landmarks: Tensor) -> Tensor:
    """The grey aligned face (112,112) of an image (3,H,W)."""
    face = warp(image[None], similarity(landmarks[None]), antialias=True)[0]
    return luma(face)[0]


def sharpness(image: Tensor, landmarks: Tensor, resolution: int) -> float:
    """How much detail of a few pixels a face shows at the training size: 0 for none.

    The face's inner part is blurred a little more; what that takes away of its gradients, as a
    share, is large where there was fine detail and small where there was none to lose
    (after Crete et al. 2007). Independent of contrast.
    """
    matrix = similarity(landmarks[None])
    own = FACE_SIZE / float(torch.linalg.det(matrix[0, :, :2]).abs().sqrt())
    size = max(32, round(own * min(1.0, resolution / min(image.shape[-2:]))))
    face = warp(image[None], matrix * (size / FACE_SIZE), size, antialias=size < own)[0]
    edge = round(size * (1 - _INNER) / 2)
    inner = luma(face)[0, edge:-edge, edge:-edge]
    left = []
    for axis in (0, 1):
        kernel, reach = ((9, 1), (0, 0, 4, 4)) if axis == 0 else ((1, 9), (4, 4, 0, 0))
        padded = F.pad(inner[None, None], reach, mode="replicate")
        blurred = F.avg_pool2d(padded, kernel, stride=1)[0, 0]
        before, after = inner.diff(dim=axis).abs(), blurred.diff(dim=axis).abs()
        left.append(float((before - after).clamp_min(0).sum() / before.sum().clamp_min(1e-6)))
    return min(left)


def light(face: Tensor) -> tuple[float, float]:
    """Mean brightness (0..1) and side light (-1..1, positive from the right) of a grey face.

    face: (112,112); its inner part counts.
    """
    edge = round(FACE_SIZE * (1 - _INNER) / 2)
    inner = face[edge:-edge, edge:-edge]
    half = inner.shape[1] // 2
    left, right = float(inner[:, :half].mean()), float(inner[:, -half:].mean())
    return float(inner.mean()), (right - left) / max(right + left, 1e-3)


def covered(parts: Tensor, landmarks: Tensor) -> float:
    """The share of a face's inner part that something else hides: hair, a hat, a hand.

    parts: (512,512) values of `Part` of the aligned head. landmarks: (5,2) in it.
    """
    low, high = landmarks.amin(dim=0), landmarks.amax(dim=0)
    y, x = (torch.arange(side, dtype=torch.float32) for side in parts.shape)
    inside_x = (x >= low[0]) & (x <= high[0])
    inside = ((y >= low[1]) & (y <= high[1]))[:, None] & inside_x
    hidden = torch.isin(parts, torch.tensor([Part.BACKGROUND, Part.CLOTHES, Part.HAIR, Part.HAT]))
    return float((hidden & inside).sum() / inside.sum().clamp_min(1))


def thumbnail(image: Tensor) -> Tensor:
    """A picture (3,H,W) as a unit vector of 24x24 grey values about their mean."""
    return _unit(F.interpolate(luma(image)[None], (24, 24), mode="area"))


def face_print(face: Tensor) -> Tensor:
    """A grey face (112,112) as a unit vector of its values about their mean."""
    return _unit(F.avg_pool2d(face[None, None], 4))


def _unit(values: Tensor) -> Tensor:
    flat = values.flatten()
    return F.normalize(flat - flat.mean(), dim=0)
