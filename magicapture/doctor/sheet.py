"""The contact sheet: every photo with its mask, its landmarks and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import ImageDraw
from torch import Tensor

from ..data import Photo, ReferenceSet
from ..data.faces import FoundFace
from ..images import from_pil, to_pil
from ..images.sheet import PLAIN, Tile, sheet
from .verdicts import SetCheck, Verdict

_COLOURS: dict[Verdict, str] = {"use": "#2e9e4f", "care": "#d99a1c", "leave out": "#c8372d"}


def overlay(photo: Photo) -> Tensor:
    """A photo (3,H,W) darkened outside its face's mask, with its landmarks as dots."""
    image, inside, landmarks = photo.image, photo.face_mask, photo.landmarks
    shown = image.clone()
    if inside is not None:
        tint = torch.tensor([0.25, 0.05, 0.45]).view(3, 1, 1)
        shown = image * inside + (0.35 * image + 0.45 * tint) * (1 - inside)
    if landmarks is not None:
        picture = to_pil(shown)
        draw = ImageDraw.Draw(picture)
        radius = max(2.0, 0.06 * float((landmarks[1] - landmarks[0]).norm()))
        for x, y in landmarks.tolist():
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, fill="#38e8ff", outline="black")
        shown = from_pil(picture)
    return shown


def contact_sheet(
    references: ReferenceSet,
    found: Sequence[FoundFace],
    report: SetCheck | None = None,
    *,
    side: int = 224,
) -> Tensor:
    """All photos (3,H,W) on one sheet, `side` pixels each, with names and findings below.

    Without a report the text says where each mask is from.
    """
    tiles = []
    for i, photo in enumerate(references):
        verdict = report.photos[i] if report else None
        colour = _COLOURS[verdict.verdict] if verdict else PLAIN
        text = verdict.text if verdict else str(found[i])
        tiles.append(Tile(overlay(photo), photo.name, text, colour))
    return sheet(tiles, side=side)
