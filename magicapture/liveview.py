"""A training run as one picture: where it stands, the newest preview, attention and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from .images import to_pil
from .plot import loss_curves
from .refocusing import TokenMap, mean_leakage, mean_map

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 768, 896
"""Pixels; a node shows them at about half of that, so the smallest letters are 18 high."""

_HEADER = 112
_PREVIEW = 512
_EDGE = 16
_MOST_PHOTOS = 12  # of each concept
_GREY, _PALE, _BLUE = "#666666", "#dddddd", "#3b7dd8"

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands: two lines of text with something at their right ends, and a bar.

    done: the share of the bar, 0..1; marks: the shares at which a phase ends.
    """

    title: str
    right: str = ""
    detail: str = ""
    detail_right: str = ""
    done: float = 0.0
    marks: Sequence[float] = ()


@dataclass
class LiveView:
    """What is known of a run so far; `draw` makes a picture of it.

    photos: the pictures of each concept by what it is called, shown until there is a preview.
    preview: the newest, (3,H,W) in 0..1. token_maps: where the tokens look. first: each token's
    leakage at the first preview. history: the losses of each step, of `steps`; phases: the steps
    at which one ends. scores: of the checkpoints by step. note: what stands below the photos, such
    as when a preview comes.
    """

    photos: Mapping[str, Sequence[Image.Image]] = field(default_factory=dict)
    preview: Tensor | None = None
    token_maps: Sequence[TokenMap] = ()
    first: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    steps: int = 1
    phases: Sequence[int] = ()
    scores: dict[int, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""

    def draw(self, standing: Standing) -> Image.Image:
        """The picture, WIDTH x HEIGHT."""
        from PIL import Image, ImageDraw

        sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
        pen = ImageDraw.Draw(sheet)
        _draw_standing(pen, standing)
        lower = _HEADER + _PREVIEW if self.history else HEIGHT
        if self.preview is None:
            self._draw_photos(sheet, pen, lower - _HEADER)
        else:
            self._draw_preview(sheet, pen, self.preview)
        if self.history:
            size = (WIDTH, HEIGHT - lower)
            curves = self.curves(size=size, dpi=160)
            sheet.paste(curves, (0, lower))
        return sheet

    def curves(self, *, size: tuple[int, int], dpi: int) -> Image.Image:
        """The losses, and the scores of the checkpoints beside them."""
        return loss_curves(
            self.history, self.steps, phases=self.phases, scores=self.scores, size=size, dpi=dpi
        )

    def _draw_photos(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, height: int) -> None:
        """Each concept's photos, one row of them below another."""
        foot = 36 if self.note else 0
        row = (height - foot) // max(1, len(self.photos))
        for number, (title, pictures) in enumerate(self.photos.items()):
            top = _HEADER + number * row
            _write(pen, (_EDGE, top), title, 22, WIDTH - 2 * _EDGE, fill=_GREY)
            _draw_contact(sheet, pictures, (_EDGE, top + 32, WIDTH - 2 * _EDGE, row - 36))
        _write(pen, (_EDGE, _HEADER + height - foot), self.note, 22, WIDTH - 2 * _EDGE, fill=_GREY)

    def _draw_preview(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, preview: Tensor) -> None:
        """The preview; beside it the tokens below each other, or nothing where they are unknown."""
        from PIL import ImageOps

        known = dict.fromkeys(shown.token for shown in self.token_maps)
        size = (_PREVIEW if known else WIDTH, _PREVIEW)
        picture = ImageOps.pad(to_pil(preview), size, color="white")
        sheet.paste(picture, (0, _HEADER))
        leakages = mean_leakage(self.token_maps)
        for number, token in enumerate(known):
            height = _PREVIEW // len(known)
            box = (
                _PREVIEW + _EDGE,
                _HEADER + number * height,
                WIDTH - _PREVIEW - 2 * _EDGE,
                height,
            )
            maps = [shown for shown in self.token_maps if shown.token == token]
            _draw_token(sheet, pen, box, maps, leakages.get(token), self.first.get(token))


def thumbnails(images: Sequence[Tensor], side: int = 256) -> list[Image.Image]:
    """Pictures (3,H,W) in 0..1 of any size as small ones of at most `side` pixels, a dozen."""
    small = []
    for image in images[:_MOST_PHOTOS]:
        scale = min(1.0, side / min(image.shape[-2:]))
        size = [max(1, round(pixels * scale)) for pixels in image.shape[-2:]]
        small.append(to_pil(F.interpolate(image[None].float().cpu(), size, mode="area")[0]))
    return small


def _draw_standing(pen: ImageDraw.ImageDraw, standing: Standing) -> None:
    for top, size, text, right, fill in (
        (8, 34, standing.title, standing.right, "black"),
        (54, 22, standing.detail, standing.detail_right, _GREY),
    ):
        bold = size > 30
        room = WIDTH - 2 * _EDGE
        taken = _write(pen, (WIDTH - _EDGE, top), right, size, room // 2, bold, fill, anchor="ra")
        _write(pen, (_EDGE, top), text, size, room - taken - _EDGE, bold, fill)
    bar = (_EDGE, 88, WIDTH - 2 * _EDGE, 14)
    _draw_bar(pen, bar, standing.done)
    for mark in standing.marks:
        x = bar[0] + round(mark * bar[2])
        pen.line((x, bar[1] - 3, x, bar[1] + bar[3] + 2), fill="black", width=2)


def _draw_contact(sheet: Image.Image, pictures: Sequence[Image.Image], box: Box) -> None:
    """Pictures as squares, as large as the box takes them all."""
    from PIL import ImageOps

    left, top, width, height = box
    count = max(1, len(pictures))
    side, columns = max(
        (min(width // columns, height // -(-count // columns)), columns)
        for columns in range(1, count + 1)
    )
    for number, picture in enumerate(pictures):
        line, column = divmod(number, columns)
        square = ImageOps.fit(picture, (max(1, side - 4), max(1, side - 4)))
        sheet.paste(square, (left + column * side, top + line * side))


def _draw_token(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    box: Box,
    maps: Sequence[TokenMap],
    leakage: float | None,
    first: float | None,
) -> None:
    """A token's name, where it looks, and its leakage as a bar with a mark at the first one."""
    left, top, width, height = box
    _write(pen, (left, top), maps[0].token, 22, width, True)
    side = min(width, height - 100)
    sheet.paste(mean_map(maps, side), (left, top + 30))
    if leakage is None:
        return
    below = top + 30 + side + 4
    was = "" if first is None else f" (first {first:.0%})"
    _write(pen, (left, below), f"leakage {leakage:.0%}{was}", 18, width)
    _draw_bar(pen, (left, below + 28, width, 12), leakage, "#c93c5b")
    if first is not None:
        x = left + round(first * width)
        pen.line((x, below + 25, x, below + 43), fill="black", width=2)


def _draw_bar(pen: ImageDraw.ImageDraw, box: Box, share: float, colour: str = _BLUE) -> None:
    left, top, width, height = box
    pen.rectangle((left, top, left + width, top + height), fill=_PALE)
    if share > 0:
        pen.rectangle((left, top, left + round(min(1.0, share) * width), top + height), fill=colour)


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    width: int,
    bold: bool = False,
    fill: str = "black",
    anchor: str = "la",
) -> int:
    """Write a line in letters of a size, smaller where it would be wider; returns its width."""
    while pen.textlength(text, _font(size, bold)) > width and size > 12:
        size -= 1
    pen.text(at, text, fill, _font(size, bold), anchor)
    return round(pen.textlength(text, _font(size, bold)))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """The letters that matplotlib brings along, which know most scripts of Europe."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)
