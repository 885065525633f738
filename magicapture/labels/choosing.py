"""Which photos of the person suit a portrait: the head held alike, the light from one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LabelSettings
from ..data import Photo, ReferenceSet
from ..errors import InputError
from ..faces.align import FFHQ_TEMPLATE, similarity, transform, warp
from ..images import luma

_SIDE = 64  # of the head in which light is looked at
_LIGHT = 0.2
"""What light counts beside pose: opposite sides differ by about 0.5, a head turned away by 0.2."""


@dataclass(frozen=True)
class Match:
    """A portrait and a photo whose face is laid into it, by their numbers, and how far apart.

    pose: in distances between the eyes. light: of its rise over the face and its contrast, as
    shares of the face's brightness.
    """

    portrait: int
    photo: int
    pose: float
    light: float

    @property
    def distance(self) -> float:
        """Of pose and light together."""
        return self.pose + _LIGHT * self.light


def matches(
    portraits: ReferenceSet, source: ReferenceSet, settings: LabelSettings
) -> tuple[tuple[Match, ...], ...]:
    """For each portrait the photos to lay in, the nearest first; none where none is near.

    Raises InputError where a face's mask or landmarks are missing.
    """
    return tuple(near(of_portrait, settings) for of_portrait in compared(portraits, source))


def compared(portraits: ReferenceSet, source: ReferenceSet) -> tuple[tuple[Match, ...], ...]:
    """For each portrait how near each photo is; raises InputError as `matches`."""
    known = [(landmarks_of(photo), light(photo)) for photo in source]
    found = []
    for i, portrait in enumerate(portraits):
        points, lit = landmarks_of(portrait), light(portrait)
        found.append(
            tuple(
                Match(i, j, pose_distance(theirs, points), float((their_light - lit).norm()))
                for j, (theirs, their_light) in enumerate(known)
            )
        )
    return tuple(found)


def near(of_portrait: Sequence[Match], settings: LabelSettings) -> tuple[Match, ...]:
    """Those of a portrait's matches that are laid in, the nearest first."""
    fit = [match for match in of_portrait if match.pose <= settings.nearness]
    return tuple(sorted(fit, key=lambda match: match.distance)[: settings.photos])


def pose_distance(one: Tensor, other: Tensor) -> float:
    """How far two faces' landmarks (5,2) are apart once moved, turned and scaled alike.

    Root mean square, in distances between a frontal face's eyes; what is left tells of heads
    turned and bent, and of faces of other proportions.
    """
    moved = transform(similarity(one[None], other), one[None])[0]
    unit = _spread(other) * float((FFHQ_TEMPLATE[1] - FFHQ_TEMPLATE[0]).norm())
    return _rms(moved - other) / unit * _spread(FFHQ_TEMPLATE)


def light(photo: Photo) -> Tensor:
    """How brightness rises to the right and downwards over a photo's face, and its contrast (3,).

    Over the spread of the face's own pixels, as shares of its mean brightness.
    """
    scale = _SIDE / 512
    matrix = similarity(landmarks_of(photo)[None], (FFHQ_TEMPLATE + 0.5) * scale - 0.5)
    both = torch.cat([photo.image, mask_of(photo)])[None]
    head = warp(both, matrix, _SIDE, antialias=True)[0]
    weight = head[3] / head[3].sum().clamp_min(1e-6)
    bright = luma(head[:3])[0]
    mean = (weight * bright).sum()
    steps = torch.linspace(-1, 1, _SIDE)
    parts = [(weight * (bright - mean).square()).sum().sqrt()]
    for way in (steps.expand(_SIDE, -1), steps[:, None].expand(-1, _SIDE)):
        off = way - (weight * way).sum()
        spread = (weight * off.square()).sum().sqrt().clamp_min(1e-6)
        parts.insert(-1, (weight * off * (bright - mean)).sum() / spread)
    return torch.stack(parts) / mean.clamp_min(1e-3)


def mask_of(photo: Photo) -> Tensor:
    """The mask (1,H,W) of a photo's face; raises InputError where it is unknown."""
    if photo.face_mask is None:
        raise _unknown(photo)
    return photo.face_mask


def landmarks_of(photo: Photo) -> Tensor:
    """The landmarks (5,2) of a photo's face; raises InputError where they are unknown."""
    if photo.landmarks is None:
        raise _unknown(photo)
    return photo.landmarks


def _unknown(photo: Photo) -> InputError:
    return InputError(
        f"{photo.name}: the face is not known. Laying the person's face into the portraits needs "
        "a face mask for every photo and portrait; make them, or set pseudo_label to portrait."
    )


def _spread(points: Tensor) -> float:
    return _rms(points - points.mean(dim=0))


def _rms(offsets: Tensor) -> float:
    return float(offsets.square().sum(dim=-1).mean().sqrt())


def used(chosen: Sequence[Sequence[Match]]) -> list[int]:
    """The numbers of the photos that are laid in anywhere."""
    return sorted({match.photo for of_portrait in chosen for match in of_portrait})
