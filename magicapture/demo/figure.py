"""The demo's picture: what was given above, what came of it beside the truth below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import to_pil
from ..metrics import METRICS
from ..paperdoll.pairs import pictures

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

    from .demo import Demo

SMALL, LARGE, COLUMNS = 128, 256, 5
GAP, MARGIN, LINE = 12, 40, 46
NARROW = 4  # between small pictures
PAPER, INK, FAINT = "#faf8f3", "#26221d", "#8d867b"
_HEAT = torch.tensor([[0.10, 0.09, 0.25], [0.55, 0.12, 0.45], [0.96, 0.46, 0.22], [1.0, 0.95, 0.6]])


def sheet(demo: Demo) -> Image:
    """Sources and references; results over the true pictures; edits and attention maps."""
    page = _Page(demo)
    page.given()
    page.compared()
    page.looked_at()
    return page.image


def heat(image: Tensor, values: Tensor) -> Tensor:
    """A map (h,w) in 0..1 as colours over a picture (3,H,W), which shows through in grey."""
    size = image.shape[-2:]
    fine = F.interpolate(values[None, None].float(), size, mode="bicubic")[0, 0].clamp(0, 1)
    place = fine * (len(_HEAT) - 1)
    low = place.floor().clamp(max=len(_HEAT) - 2).long()
    share = (place - low)[..., None]
    colours = torch.lerp(_HEAT[low], _HEAT[low + 1], share).movedim(-1, 0)
    return torch.lerp(image.mean(0, keepdim=True).expand_as(image), colours, 0.72).clamp(0, 1)


class _Page:
    """The picture while it is laid out, from top to bottom."""

    def __init__(self, demo: Demo) -> None:
        from PIL import Image, ImageDraw

        self.demo = demo
        self.width = COLUMNS * LARGE + (COLUMNS - 1) * GAP
        height = 2 * MARGIN + 4 * LINE + SMALL + 3 * LARGE + 3 * 14
        self.image = Image.new("RGB", (self.width + 2 * MARGIN, height), PAPER)
        self._pen = ImageDraw.Draw(self.image)
        self._y = MARGIN

    def given(self) -> None:
        """The pictures that training saw, small."""
        half = COLUMNS * SMALL + (COLUMNS - 1) * NARROW
        pair = self.demo.pair
        for x, text, dolls in (
            (0, "the person", pair.source),
            (self.width - half, "the style", pair.reference),
        ):
            shown = dolls[:COLUMNS]
            self._text(x, text, f"{len(dolls)} pictures")
            self._row(list(pictures(shown)), SMALL, x=x, top=LINE)
        self._y += LINE + SMALL + 14

    def compared(self) -> None:
        """Results, and the true pictures below them."""
        self._text(0, "the person in the style", "made by MagiCapture")
        self._scores()
        self._row(list(self.demo.results[:COLUMNS]), LARGE, top=LINE)
        self._y += LINE + LARGE + 14
        self._text(
            0, "the truth", "drawn by the renderer in the nearest pose; training never saw it"
        )
        self._row(list(self.demo.truth[:COLUMNS]), LARGE, top=LINE)
        self._y += LINE + LARGE + 14

    def looked_at(self) -> None:
        """Edits of the prompt, the picture without training, and where both tokens look."""
        demo, first = self.demo, self.demo.results[0]
        shown = [(f"“{edit.words}”", images[0]) for edit, images in demo.edited.items()]
        shown += [(f"where <{name}> looks", heat(first, at[0])) for name, at in demo.maps.items()]
        shown.append(("without training", demo.untrained[0]))
        for column, (text, image) in enumerate(shown[:COLUMNS]):
            x = column * (LARGE + GAP)
            self._text(x, "", text, width=LARGE)
            self._row([image], LARGE, x=x, top=LINE)

    def _scores(self) -> None:
        headlines = [metric for metric in METRICS.values() if metric.place == "headline"][:2]
        text = "      ".join(
            f"{metric.heading} {of['trained']:.2f}  (untrained {of['untrained']:.2f})"
            for metric in headlines
            for of in (self.demo.scores[metric.name],)
        )
        font = _font(19)
        x = self.width - self._pen.textlength(text, font)
        self._pen.text((MARGIN + x, self._y + 10), text, FAINT, font)

    def _text(self, x: float, text: str, more: str = "", width: float = 1e9) -> None:
        """A heading and what is to be said of it, the latter small enough for the width."""
        bold, size = _font(24, bold=True), 19
        while size > 9 and self._pen.textlength(more, _font(size)) > width:
            size -= 1
        self._pen.text((MARGIN + x, self._y + 6), text, INK, bold)
        after = self._pen.textlength(text, bold) + 14 if text else 0
        self._pen.text((MARGIN + x + after, self._y + 29 - size), more, FAINT, _font(size))

    def _row(self, images: Sequence[Tensor], side: int, x: int = 0, top: int = 0) -> None:
        gap = GAP if side == LARGE else NARROW
        for column, image in enumerate(images):
            at = (MARGIN + x + column * (side + gap), self._y + top)
            self.image.paste(_picture(image, side), at)


def _picture(image: Tensor, side: int) -> Image:
    from PIL import Image

    return to_pil(image).resize((side, side), Image.Resampling.BICUBIC)


def _font(size: int, bold: bool = False) -> FreeTypeFont:
    """matplotlib's own font, which is there wherever the loss curves are."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / name), size)
