"""A pair's photos as users have them: other numbers of them, and masks that are not exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture import ReferenceSet
from magicapture.paperdoll import Doll, pose_from_seed, render, split_of, style_from_seed
from magicapture.paperdoll.pairs import Pair, references
from magicapture.paperdoll.seeds import stream

COUNTS = (1, 2, 4, 6, 10, 20)
SHARES = (5, 10, 20)
"""Faults of a mask, in percent of the face's height."""


def photos_of(pair: Pair, seed: int, count: int) -> tuple[Doll, ...]:
    """The first photos of a pair's person: the pair's own, then more like them.

    seed: the identity's. Fewer photos are a part of more, so that levels differ by their number.
    """
    draw = stream("more photos", seed)
    seeds = split_of(seed).seeds
    more = []
    while len(pair.source) + len(more) < count:
        style, pose = (int(draw.integers(seeds.start, seeds.stop)) for _ in range(2))
        look = replace(style_from_seed(style), medium="photo")
        more.append(render(pair.identity, look, pose_from_seed(pose)))
    return (*pair.source, *more)[:count]


def with_masks(dolls: Sequence[Doll], kind: str, percent: int, seed: int) -> ReferenceSet:
    """Dolls as a reference set whose masks have one fault of `FAULTS`, of percent of the face.

    seed: decides the way that each mask is shifted.
    """
    found = references(dolls)
    draw = torch.Generator().manual_seed(seed)
    photos = []
    for photo in found.photos:
        assert photo.face_mask is not None
        mask = FAULTS[kind](photo.face_mask, percent / 100 * height(photo.face_mask), draw)
        photos.append(replace(photo, face_mask=mask))
    return replace(found, photos=tuple(photos))


def height(mask: Tensor) -> float:
    """Pixels from the top of a mask (1,H,W) to its foot."""
    rows = (mask[0] > 0.5).any(1).nonzero()
    return float(rows[-1] - rows[0] + 1)


def shifted(mask: Tensor, pixels: float, draw: torch.Generator) -> Tensor:
    """The mask moved in a random direction."""
    angle = 2 * torch.pi * torch.rand((), generator=draw)
    x, y = round(pixels * float(angle.cos())), round(pixels * float(angle.sin()))
    wide = F.pad(mask, (32, 32, 32, 32))
    rows, columns = mask.shape[-2:]
    return wide[..., 32 - y : 32 - y + rows, 32 - x : 32 - x + columns]


def grown(mask: Tensor, pixels: float, _: torch.Generator) -> Tensor:
    """The mask with an edge further out."""
    side = 2 * round(pixels) + 1
    return F.max_pool2d(mask[None], side, 1, side // 2)[0]


def shrunk(mask: Tensor, pixels: float, draw: torch.Generator) -> Tensor:
    """The mask with an edge further in."""
    return 1 - grown(1 - mask, pixels, draw)


def oval(mask: Tensor, pixels: float, _: torch.Generator) -> Tensor:
    """The ellipse in the mask's box, the box grown: masks of a user's drawing tool."""
    rows, columns = ((mask[0] > 0.5).any(axis).nonzero() for axis in (1, 0))
    centre = [float(of[0] + of[-1]) / 2 for of in (rows, columns)]
    radii = [float(of[-1] - of[0] + 1) / 2 + pixels for of in (rows, columns)]
    y, x = (torch.arange(side, dtype=torch.float32) for side in mask.shape[-2:])
    distance = ((y - centre[0]) / radii[0])[:, None] ** 2 + ((x - centre[1]) / radii[1]) ** 2
    return (distance <= 1).to(mask)[None]


FAULTS: Mapping[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "shifted": shifted,
    "grown": grown,
    "shrunk": shrunk,
    "oval": oval,
}
