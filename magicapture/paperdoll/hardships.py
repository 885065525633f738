"""Hard photos of a person: light, hair, heads and masks as people's own photos have them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError
from ..faces.masks import face_mask
from ..faces.protocols import Face
from .drawing.colours import Array
from .drawing.render import Doll, render
from .drawing.traits import Identity, Pose, Style

Change = Callable[[Style, Pose, float, float], tuple[Style, Pose]]


def _side_light(style: Style, pose: Pose, side: float, share: float) -> tuple[Style, Pose]:
    strength = 0.8 + 0.2 * share
    return style, replace(pose, side_light=side * strength, light_angle=side * strength)


def _half_shadow(style: Style, pose: Pose, side: float, share: float) -> tuple[Style, Pose]:
    return style, replace(pose, shadow=side * (0.8 + 0.2 * share))


def _fringe(style: Style, pose: Pose, side: float, share: float) -> tuple[Style, Pose]:
    return replace(style, fringe=0.7 + 0.3 * share), pose


def _turned(style: Style, pose: Pose, side: float, share: float) -> tuple[Style, Pose]:
    return style, replace(pose, turn=side * (2.2 + 0.6 * share))


_DRAWN: dict[str, Change] = {
    "side light": _side_light,
    "fringe": _fringe,
    "turned": _turned,
    "half shadow": _half_shadow,
}

OVAL, ALL = "oval masks", "all"

HARDSHIPS = (*_DRAWN, OVAL, ALL)
"""What photos may be asked to have: all of them one hardship, or all at once, as in `_MIXED`."""

_MIXED = (
    ("side light", "fringe"),
    ("half shadow", "turned"),
    ("fringe", "turned"),
    ("half shadow", "fringe"),
    ("side light", "turned"),
)
"""What each photo in turn has where all are asked for, beside an oval for a mask."""


def hardships_of(hard: str, index: int) -> tuple[str, ...]:
    """What the photo of this number has, where `hard`, one of HARDSHIPS, is asked for.

    Raises InputError for another name.
    """
    if hard not in HARDSHIPS:
        raise InputError(
            f"There is no hardship {hard!r} of photos; there are: {', '.join(HARDSHIPS)}."
        )
    return (*_MIXED[index % len(_MIXED)], OVAL) if hard == ALL else (hard,)


def hard_photo(
    identity: Identity,
    style: Style,
    pose: Pose,
    kinds: Collection[str],
    rng: np.random.Generator,
) -> Doll:
    """A photo with hardships, each from a side and of a degree that `rng` decides.

    Landmarks and labels are true; the mask is too, but for "oval masks".
    """
    for name, change in _DRAWN.items():
        side, share = float(rng.choice((-1.0, 1.0))), float(rng.uniform())
        if name in kinds:
            style, pose = change(style, pose, side, share)
    doll = render(identity, style, pose)
    return replace(doll, mask=_oval(doll)) if OVAL in kinds else doll


def _oval(doll: Doll) -> Array:
    """The mask (1, H, W) that a face gets without a parser."""
    points = torch.from_numpy(doll.landmarks)
    face = Face(torch.cat([points.amin(0), points.amax(0)]), points, 1.0)
    return face_mask(torch.from_numpy(doll.image), face, None).mask.numpy()
