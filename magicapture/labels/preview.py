"""What will be taught, for a look before training."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from ..config import LabelSettings
from ..data import Photo
from ..images.sheet import Tile, sheet
from .making import Label, LabelSet

SHOWN_IN = "violet"
"""The colour that lies over what is not taught."""

_VIOLET = (0.55, 0.1, 0.9)


def shown(label: Photo) -> Tensor:
    """A label (3,H,W) with violet over what of it is not taught."""
    if label.taught is None:
        return label.image
    violet = label.image.new_tensor(_VIOLET).view(3, 1, 1)
    return torch.lerp(label.image, violet, 0.6 * (1 - label.taught))


def label_sheet(made: LabelSet, *, side: int = 224) -> Tensor:
    """All labels on one sheet (3,H,W): the portrait, the photo, and the label as it is taught.

    Two labels stand in a row, where there are more. side: of a picture, in pixels.
    """
    tiles = [tile for label in made.labels for tile in _tiles(label, made.settings)]
    return sheet(tiles, side=side, columns=3 if len(made.labels) < 3 else 6)


def report(made: LabelSet) -> str:
    """A line for each label, then what is to know of them all."""
    lines = [f"{label.shown.name}: {_told(label, made.settings)}" for label in made.labels]
    return "\n".join([*lines, _summary(made), *made.warnings])


def _tiles(label: Label, settings: LabelSettings) -> tuple[Tile, Tile, Tile]:
    portrait, photo = label.portrait, label.photo
    if label.laid_in:
        near = f"laid in: {_away(label)}"
        taught = f"label; {SHOWN_IN} is not taught. Seam {label.steepness:.2f}"
    else:
        near = f"nearest, not laid in: {_why(label, settings)}; {_limit(label, settings)}"
        taught = f"label: its own face stays; {SHOWN_IN} is not taught"
    return (
        Tile(portrait.image, portrait.name, "portrait"),
        Tile(photo.image, photo.name, near),
        Tile(shown(label.shown), label.shown.name, taught),
    )


def _told(label: Label, settings: LabelSettings) -> str:
    if not label.laid_in:
        return (
            f"{_why(label, settings)}: its own face stays and is not taught; the nearest photo is "
            f"{label.photo.name}, {_limit(label, settings)}"
        )
    return (
        f"the person's face is laid in, {_away(label)}; the seam's gradient is "
        f"{label.steepness:.2f} of the portrait's; {label.share_taught:.0%} of the face is taught"
    )


def _away(label: Label) -> str:
    return f"{label.match.pose:.2f} away in pose and {label.match.light:.2f} in light"


def _limit(label: Label, settings: LabelSettings) -> str:
    return f"{label.match.pose:.2f} away, up to {settings.nearness:g} is near"


def _why(label: Label, settings: LabelSettings) -> str:
    """Why a portrait keeps its own face."""
    if label.match.pose > settings.nearness:
        return "no photo is near in pose"
    return "the masks of the two faces do not meet"


def _summary(made: LabelSet) -> str:
    laid_in = [label for label in made.labels if label.laid_in]
    seam = ""
    if laid_in:
        middle = statistics.median(label.steepness for label in laid_in)
        seam = f" Seams' gradient: {middle:.2f} of the portraits' (median); at 1 none is seen."
    return (
        f"{len(laid_in)} of {len(made.labels)} labels show the person.{seam} What lies under "
        f"{SHOWN_IN} in the preview is not taught."
    )
