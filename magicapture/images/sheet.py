"""Pictures side by side on one sheet, each with its name and a few lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pillow import from_pil, to_pil

_LINES, _LINE, _MARGIN = 4, 17, 8  # lines of text below a picture, their height, space around

PLAIN = "#6b7280"
"""The colour of a tile that means neither good nor bad."""


class Tile(NamedTuple):
    """A picture (3,H,W), its name, a text below, and the colour of its frame and text."""

    picture: Tensor
    name: str
    text: str
    colour: str = PLAIN


def sheet(tiles: Sequence[Tile], *, side: int = 224, columns: int | None = None) -> Tensor:
    """All pictures on one sheet (3,H,W), `side` pixels each, up to five in a row, or as many as
    `columns` says."""
    columns = columns or min(len(tiles), 5 if len(tiles) > 4 else 4)
    rows = -(-len(tiles) // columns)
    width = side + 2 * _MARGIN
    height = side + 2 * _MARGIN + _LINES * _LINE + _MARGIN
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for i, tile in enumerate(tiles):
        whole.paste(_drawn(tile, side), (i % columns * width, i // columns * height))
    return from_pil(whole)


def _drawn(tile: Tile, side: int) -> Image.Image:
    picture = to_pil(tile.picture)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    size = (side + 2 * _MARGIN, side + 3 * _MARGIN + _LINES * _LINE)
    drawn = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(drawn)
    place = ((size[0] - picture.width) // 2, _MARGIN + (side - picture.height) // 2)
    far = (place[0] + picture.width + 3, place[1] + picture.height + 3)
    draw.rectangle((place[0] - 4, place[1] - 4, *far), fill=tile.colour)
    drawn.paste(picture, place)
    font = ImageFont.load_default(13)
    lines = textwrap.wrap(tile.text, side // 7)
    if len(lines) > _LINES - 1:
        lines = [*lines[: _LINES - 2], lines[_LINES - 2][: side // 7 - 1] + "…"]
    y = side + 2 * _MARGIN
    name = textwrap.shorten(tile.name, side // 7, placeholder="…")
    draw.text((_MARGIN, y), name, "black", font)
    for n, line in enumerate(lines, 1):
        draw.text((_MARGIN, y + n * _LINE), line, tile.colour, font)
    return drawn
