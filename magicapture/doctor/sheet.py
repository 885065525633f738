"""The contact sheet: every photo with its mask, its landmarks and what is said of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import Photo, ReferenceSet
from ..data.faces import FoundFace
from ..images import from_pil, to_pil
from .verdicts import SetCheck, Verdict

_COLOURS: dict[Verdict, str] = {"use": "#2e9e4f", "care": "#d99a1c", "leave out": "#c8372d"}
_PLAIN = "#6b7280"
_LINES, _LINE, _MARGIN = 4, 17, 8  # lines of text below a photo, their height, space around


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
    count = len(references)
    columns = min(count, 5 if count > 4 else 4)
    rows = -(-count // columns)
    width = side + 2 * _MARGIN
    height = side + 2 * _MARGIN + _LINES * _LINE + _MARGIN
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i in range(count):
        verdict = report.photos[i] if report else None
        colour = _COLOURS[verdict.verdict] if verdict else _PLAIN
        text = verdict.text if verdict else str(found[i])
        photo = references.photos[i]
        tile = _tile(to_pil(overlay(photo)), photo.name, text, colour, side)
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return from_pil(sheet)


def _tile(photo: Image.Image, name: str, text: str, colour: str, side: int) -> Image.Image:
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    size = (side + 2 * _MARGIN, side + 3 * _MARGIN + _LINES * _LINE)
    tile = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(tile)
    place = ((size[0] - photo.width) // 2, _MARGIN + (side - photo.height) // 2)
    frame = (place[0] - 4, place[1] - 4, place[0] + photo.width + 3, place[1] + photo.height + 3)
    draw.rectangle(frame, fill=colour)
    tile.paste(photo, place)
    font = ImageFont.load_default(13)
    lines = textwrap.wrap(text, side // 7)
    if len(lines) > _LINES - 1:
        lines = [*lines[: _LINES - 2], lines[_LINES - 2][: side // 7 - 1] + "…"]
    y = side + 2 * _MARGIN
    draw.text((_MARGIN, y), textwrap.shorten(name, side // 7, placeholder="…"), "black", font)
    for n, line in enumerate(lines, 1):
        draw.text((_MARGIN, y + n * _LINE), line, colour, font)
    return tile
