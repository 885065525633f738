"""Pairs: a person's photos, a style's portraits, and the true pictures of the two together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data import ReferenceSet
from ..errors import InputError
from . import (
    Doll,
    Identity,
    Pose,
    Style,
    identity_from_seed,
    pose_from_seed,
    render,
    split_of,
    style_from_seed,
)
from .hardships import hard_photo, hardships_of
from .seeds import stream

PHOTOS = 5
"""Photos of the person and portraits in the style; the paper has 4 to 6."""

POSES = 64
"""True compositions, each in a pose of its own, of which a picture is compared with the nearest."""

UNSEEN = 16
"""True compositions that stand where results would."""

STRANGERS = 40
"""Dolls that lack one of the pair's two concepts: what lacking looks like."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A person and a style that never met, and what is known about them together.

    source: the person in photos of other styles. ordinary: these photos without hardships, against
    which likeness is measured. reference: other people in the style.
    truth: the person in the style, by pose; the last ones have the poses of source + reference.
    unseen: the same in other poses, to be scored as results are: the ceiling.
    others_in_style: further people in the style. otherwise: the person in further styles.
    """

    identity: Identity
    style: Style
    source: tuple[Doll, ...]
    ordinary: tuple[Doll, ...]
    reference: tuple[Doll, ...]
    truth: tuple[Doll, ...]
    unseen: tuple[Doll, ...]
    others_in_style: tuple[Doll, ...]
    otherwise: tuple[Doll, ...]

    @property
    def training(self) -> tuple[Doll, ...]:
        """All pictures that a training sees."""
        return self.source + self.reference


def make_pair(
    identity: int,
    style: int,
    *,
    photos: int = PHOTOS,
    poses: int = POSES,
    hard: str | None = None,
) -> Pair:
    """The pair of an identity's and a style's seed; all else comes from seeds of their split.

    Source pictures are photos, as people have them; the style may be of any medium. hard: one of
    `hardships.HARDSHIPS`, which the source pictures then have; nothing else of the pair changes.
    Raises InputError for seeds of two splits, or another hardship.
    """
    if split_of(identity) is not split_of(style):
        raise InputError(
            f"The identity's seed {identity} and the style's {style} are of two splits; a pair is "
            "all training, all development or all test."
        )
    person, look = identity_from_seed(identity), style_from_seed(style)
    seeds = _other_seeds(identity, style, 4 * photos + poses + UNSEEN + 4 * STRANGERS)

    def some(count: int) -> list[int]:
        return [next(seeds) for _ in range(count)]

    def posed(count: int) -> list[Pose]:
        return [pose_from_seed(seed) for seed in some(count)]

    own, theirs, free, new = (posed(n) for n in (photos, photos, poses, UNSEEN))
    styles = [replace(style_from_seed(seed), medium="photo") for seed in some(photos)]
    people = [identity_from_seed(seed) for seed in some(photos)]
    strangers = zip(some(STRANGERS), posed(STRANGERS), strict=True)
    elsewhere = zip(some(STRANGERS), posed(STRANGERS), strict=True)
    shots = tuple(zip(styles, own, strict=True))
    source = ordinary = tuple(render(person, *shot) for shot in shots)
    if hard is not None:
        chance = stream("hardships", identity)
        source = tuple(
            hard_photo(person, *shot, hardships_of(hard, index), chance)
            for index, shot in enumerate(shots)
        )
    return Pair(
        person,
        look,
        source,
        ordinary,
        tuple(render(p, look, pose) for p, pose in zip(people, theirs, strict=True)),
        tuple(render(person, look, pose) for pose in free + own + theirs),
        tuple(render(person, look, pose) for pose in new),
        tuple(render(identity_from_seed(seed), look, pose) for seed, pose in strangers),
        tuple(render(person, style_from_seed(seed), pose) for seed, pose in elsewhere),
    )


def references(dolls: Sequence[Doll]) -> ReferenceSet:
    """Dolls as a reference set, with their own face masks and landmarks."""
    return ReferenceSet.of(
        [torch.from_numpy(doll.image) for doll in dolls],
        face_masks=[torch.from_numpy(doll.mask) for doll in dolls],
        landmarks=[torch.from_numpy(doll.landmarks) for doll in dolls],
    )


def pictures(dolls: Sequence[Doll]) -> Tensor:
    """Their pictures (N,3,H,W)."""
    return torch.from_numpy(np.stack([doll.image for doll in dolls]))


def masks(dolls: Sequence[Doll]) -> Tensor:
    """Their face masks (N,1,H,W)."""
    return torch.from_numpy(np.stack([doll.mask for doll in dolls]))


def _other_seeds(identity: int, style: int, count: int) -> Iterator[int]:
    """Seeds of the pair's split other than its own two, always the same ones, no two alike."""
    split = split_of(identity).seeds
    rng = np.random.default_rng([identity, style])
    drawn = rng.choice(len(split), size=count + 2, replace=False) + split.start
    return (int(seed) for seed in drawn if seed not in (identity, style))
