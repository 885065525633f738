"""Masks of faces: from a parser, or from the landmarks alone where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Checked, setting
from ..errors import InputError
from ..images import gaussian_blur
from .align import FFHQ_TEMPLATE, HEAD_SIZE, invert, similarity, transform, warp
from .analyzer import head
from .protocols import FACE_PARTS, Face, Parser, Part

FACE_WORD = "face"
"""Stands for FACE_PARTS in a list of parts."""

_NAMES = {
    **{part.name.lower(): part for part in Part if part != Part.BACKGROUND},
    **{f"{name}s": Part[name.upper()] for name in ("brow", "eye", "ear", "earring", "lip")},
}

_MIDDLE, _HALF = (256.0, 292.0), (148.0, 190.0)
"""The oval of a face, forehead to chin, in a 512x512 head: (x, y) of its middle, half its axes."""

_FACE_WIDTH = 2 * _HALF[0]

_TURN, _NARROW = 0.9, 0.55
"""How far the oval moves away from, and narrows by, the nose's offset from eyes and mouth."""


def parts_from(text: str) -> frozenset[Part]:
    """The parts named in a text such as "face, hair"; "face" is FACE_PARTS.

    Raises InputError for an unknown name or an empty list.
    """
    parts: set[Part] = set()
    for name in filter(None, (word.strip().lower() for word in text.split(","))):
        if name == FACE_WORD:
            parts |= FACE_PARTS
        elif name in _NAMES:
            parts.add(_NAMES[name])
        else:
            known = ", ".join(part.name.lower() for part in Part if part != Part.BACKGROUND)
            raise InputError(
                f"There is no part {name!r} of a face; there are: face (which is skin, brow, eye, "
                f"glasses, ear, earring, nose, mouth, lip), {known}."
            )
    if not parts:
        raise InputError("No part of the face is named; give 'face', or 'face, hair'.")
    return frozenset(parts)


@dataclass(frozen=True)
class MaskSettings(Checked):
    """How a face's mask is made."""

    parts: str = setting(
        FACE_WORD,
        "What counts as face: face is skin, brow, eye, glasses, ear, earring, nose, mouth, lip. "
        "Add hair, hat, neck or beard after commas, or name the parts one by one. Needs a parser.",
    )
    grow: float = setting(
        0.02,
        "Grow the mask by this share of the face's width; negative shrinks it.",
        low=-0.5,
        high=0.5,
    )
    feather: float = setting(
        0.02, "Soften the mask's edge over this share of the face's width.", low=0, high=0.5
    )


@dataclass(frozen=True, eq=False)
class FaceMask:
    """A mask (1,H,W) in 0..1 of one face, and how it came about.

    parsed: True where a parser made it; False where it is an oval laid over the landmarks.
    """

    mask: Tensor
    parsed: bool
    parts: Tensor | None = field(default=None, repr=False)  # (512,512) of the aligned head


def face_mask(
    image: Tensor,
    face: Face,
    parser: Parser | None,
    settings: MaskSettings | None = None,
    others: Sequence[Face] = (),
) -> FaceMask:
    """The mask of a face in an image (3,H,W), made in the aligned head and laid back.

    Without a parser, or where it sees nothing of the face, the mask is an oval, and says so. What
    lies nearer to one of the `others` than to this face is theirs.
    """
    settings = settings or MaskSettings()
    wanted = torch.tensor(sorted(parts_from(settings.parts)))
    crop, matrix = head(image, face)
    labels = None if parser is None else parser(crop)[0].cpu()
    seen = None if labels is None else torch.isin(labels, wanted).float()
    parsed = seen is not None and bool(seen.mean() > 0.01)
    if seen is None or not parsed:
        seen = _oval(transform(matrix, face.landmarks[None])[0])
    size = (image.shape[-2], image.shape[-1])
    mask = _laid_back(_finished(seen, settings), matrix, size)
    return FaceMask(mask * _own(face, others, size), parsed, labels if parsed else None)


def oval(landmarks: Tensor, size: tuple[int, int], settings: MaskSettings | None = None) -> Tensor:
    """The oval (1,H,W) that is the mask of a face with these landmarks where none parses it."""
    settings = settings or MaskSettings()
    matrix = similarity(landmarks[None], FFHQ_TEMPLATE)
    seen = _finished(_oval(transform(matrix, landmarks[None])[0]), settings)
    return _laid_back(seen, matrix, size)


def beyond(face: Face, size: tuple[int, int]) -> float:
    """The share of a face's oval that lies beyond a picture of size (H,W).

    By its landmarks: the box that a detector gives ends where the picture does.
    """
    matrix = similarity(face.landmarks[None], FFHQ_TEMPLATE)
    inside = _oval(transform(matrix, face.landmarks[None])[0]).nonzero().flip(-1).float()
    x, y = transform(invert(matrix), inside[None])[0].unbind(-1)
    seen = (x >= -0.5) & (y >= -0.5) & (x <= size[1] - 0.5) & (y <= size[0] - 0.5)
    return 1 - float(seen.float().mean())


def outside(mask: Tensor, face: Face) -> float:
    """The share of a face's oval in the picture that lies outside a mask (1,H,W) of it."""
    exact = MaskSettings(grow=0, feather=0)
    seen = oval(face.landmarks, (mask.shape[-2], mask.shape[-1]), exact) >= 0.5
    return float((seen & (mask < 0.5)).sum() / seen.sum().clamp_min(1))


def _finished(seen: Tensor, settings: MaskSettings) -> Tensor:
    """A head's mask (512,512) grown and softened as the settings say: (1,1,512,512)."""
    larger = grown(seen[None, None], round(settings.grow * _FACE_WIDTH))
    return _softened(larger, settings.feather)


def _laid_back(seen: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1,1,512,512) of a head, which `matrix` leads to, in the picture of size (H,W)."""
    scale = float(torch.linalg.det(matrix[0, :, :2]).abs().sqrt())
    side = min(HEAD_SIZE, math.ceil(HEAD_SIZE / scale))  # the head's own, so that nothing aliases
    share = side / HEAD_SIZE
    smaller = matrix * share
    smaller[..., 2] += 0.5 * share - 0.5  # pixel centres are at integers
    return warp(F.interpolate(seen, (side, side), mode="area"), invert(smaller), size)[0]


def _oval(landmarks: Tensor) -> Tensor:
    """The face's oval in a head (512,512) with these landmarks; a turned head's lies off-centre."""
    eyes_and_mouth = landmarks[[0, 1, 3, 4], 0].mean()
    turn = float(landmarks[2, 0] - eyes_and_mouth)
    steps = torch.arange(HEAD_SIZE, dtype=torch.float32)
    x = (steps - float(eyes_and_mouth) + _TURN * turn) / (_HALF[0] - _NARROW * min(abs(turn), 100))
    y = (steps - _MIDDLE[1]) / _HALF[1]
    return (x[None].square() + y[:, None].square() <= 1).float()


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (...,1,H,W) grown by so many pixels, or shrunk by a negative number; octagonally."""
    sign = 1 if pixels > 0 else -1
    larger = sign * mask
    for step in range(abs(pixels)):
        if step % 2:
            larger = F.max_pool2d(larger, 3, 1, 1)
        else:
            wide = F.max_pool2d(larger, (1, 3), 1, (0, 1))
            larger = wide.maximum(F.max_pool2d(larger, (3, 1), 1, (1, 0)))
    return sign * larger


def _softened(mask: Tensor, share: float) -> Tensor:
    """A mask (1,1,H,W) blurred by a Gaussian that goes from 0.02 to 0.98 over a share."""
    sigma = share * _FACE_WIDTH / 4
    return mask if sigma < 0.2 else gaussian_blur(mask, sigma)


def _own(face: Face, others: Sequence[Face], size: tuple[int, int]) -> Tensor:
    """1 where a pixel of a picture is no nearer to another face than to this one, (1,H,W)."""
    own = torch.ones(1, *size)
    near = [o for o in others if o is not face]
    if not near:
        return own
    y, x = torch.meshgrid(*(torch.arange(s, dtype=torch.float32) for s in size), indexing="ij")
    distance = _distance(face, x, y)
    for other in near:
        own = own * (distance <= _distance(other, x, y))
    return own


def _distance(face: Face, x: Tensor, y: Tensor) -> Tensor:
    """The distance of each pixel to the middle of a face's oval, in half axes of the oval."""
    back = invert(similarity(face.landmarks[None], FFHQ_TEMPLATE))
    middle = transform(back, torch.tensor([[_MIDDLE]]))[0, 0]
    scale = float(torch.linalg.det(back[0, :, :2]).abs().sqrt()) * _HALF[0]
    return torch.hypot(x - middle[0], y - middle[1]) / scale
