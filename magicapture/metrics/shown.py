"""What metrics measure: pictures of a person in a style, what networks see in them, the truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .likeness import likeness, share

SIDE = 32
"""Side at which pictures are compared: a cell of 4 x 4 pixels forgives a shift that no viewer
would see, and the soft edges of an autoencoder."""


class Sight(NamedTuple):
    """What networks see in pictures: identities (N,D), styles (N,E), and whether a face (N,)."""

    identities: Tensor
    styles: Tensor
    faces: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """A person and a style that never met, as metrics know them.

    source, reference: embeddings of the person's photos (N,D) and of the style's portraits (N,E).
    truth, training: pictures at SIDE, (N,3,s,s). face: masks of the truth (N,1,s,s).
    warranted: how near any true composition comes to each training picture.
    identity_floor, style_floor: likeness at or below which the concept is missing.
    tone: the person's band of skin tone.
    """

    source: Tensor
    reference: Tensor
    truth: Tensor
    face: Tensor
    training: Tensor
    warranted: Tensor
    identity_floor: float
    style_floor: float
    tone: str


class ToTruth(NamedTuple):
    """Distance to the nearest true composition, whole, on its face and off it: each (B,)."""

    whole: Tensor
    face: Tensor
    scene: Tensor


@dataclass(frozen=True, eq=False)
class Shown:
    """Pictures (B,3,H,W) in 0..1, what is seen in them, and the case they are pictures of.

    What several metrics need is computed once, when it is first asked for.
    """

    images: Tensor
    sight: Sight
    case: Case

    @cached_property
    def small(self) -> Tensor:
        """The pictures at SIDE: (B,3,s,s)."""
        return small(self.images)

    @cached_property
    def identity(self) -> Tensor:
        """Likeness to the person as a share of the photos' own, 0 without a face: (B,)."""
        return share(self.sight.identities, self.case.source) * self.sight.faces

    @cached_property
    def style(self) -> Tensor:
        """Likeness to the style as a share of the portraits' own: (B,)."""
        return share(self.sight.styles, self.case.reference)

    @cached_property
    def no_identity(self) -> Tensor:
        """Whether the person is missing: (B,) bool."""
        alike = likeness(self.sight.identities, self.case.source)
        return (alike <= self.case.identity_floor) | ~self.sight.faces

    @cached_property
    def no_style(self) -> Tensor:
        """Whether the style is missing: (B,) bool."""
        return likeness(self.sight.styles, self.case.reference) <= self.case.style_floor

    @cached_property
    def to_truth(self) -> ToTruth:
        """Mean absolute difference to the nearest true composition."""
        whole, nearest = distances(self.small, self.case.truth).min(1)
        difference = (self.small - self.case.truth[nearest]).abs().mean(1, keepdim=True)
        face = self.case.face[nearest]

        def over(weight: Tensor) -> Tensor:
            return (difference * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1e-6)

        return ToTruth(whole, over(face), over(1 - face))


def small(images: Tensor) -> Tensor:
    """Pictures (B,C,H,W) at SIDE, by area: (B,C,s,s)."""
    return F.interpolate(images.float(), (SIDE, SIDE), mode="area")


def distances(some: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference of small pictures (N,3,s,s) and (M,3,s,s): (N,M)."""
    return torch.cdist(some.flatten(1), others.flatten(1), p=1) / some[0].numel()


def nearest(seen: Tensor, training: Tensor) -> Tensor:
    """How near each small picture (N,3,s,s) or its mirror image comes to one of training: (N,)."""
    return torch.stack([distances(one, training).amin(1) for one in (seen, seen.flip(-1))]).amin(0)


def copy_distance(training: Tensor) -> float:
    """Small pictures nearer to one of training (N,3,s,s) than this are copies.

    Half of how near two different ones come, as in Carlini et al. 2023 half of what is usual. All
    of it is too much: on dolls 31 % of true compositions come as near to a portrait in their style,
    and 0.5 % come half as near; of mirrored training pictures 98 % do (docs/evaluate.md). Needs two
    pictures.
    """
    return float((distances(training, training) + torch.eye(len(training))).min()) / 2
