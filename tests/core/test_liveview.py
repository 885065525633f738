"""The picture of a run: it always has its size, and each part shows what it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magicapture.liveview import HEIGHT, WIDTH, LiveView, Standing, thumbnails
from magicapture.refocusing import TokenMap

RED, BLUE = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
STANDING = Standing("Step 60 of 600", "6:30 left", "composed", "1.52 it/s", 0.1, [0.3])


def plain(colour: torch.Tensor, height: int = 64, width: int = 64) -> torch.Tensor:
    return colour.view(3, 1, 1).expand(3, height, width)


def drawn(view: LiveView, standing: Standing = STANDING) -> np.ndarray:
    picture = view.draw(standing)
    assert picture.size == (WIDTH, HEIGHT) and picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def share_of(pixels: np.ndarray, colour: torch.Tensor) -> float:
    """The share of a picture that is nearly of a colour."""
    wanted = (colour * 255).round().int().numpy()
    return float((np.abs(pixels - wanted).max(-1) < 12).mean())


def maps(leakage: float | None) -> list[TokenMap]:
    region = torch.zeros(16, 16)
    region[4:12, 4:12] = 1
    return [
        TokenMap(token, role, 0.5, factor, torch.rand(16 // factor, 16 // factor), region, leakage)
        for token, role in (("ada", "subject"), ("ink", "style"))
        for factor in (1, 2)
    ]


def test_the_photos_are_shown_until_there_is_a_preview() -> None:
    photos = {"The person: 3 photos": thumbnails([plain(RED, 300, 200)] * 3)}
    assert share_of(drawn(LiveView(photos)), RED) > 0.15
    view = LiveView(photos, preview=plain(BLUE, 64, 96), token_maps=maps(0.3))
    shown = drawn(view)
    assert share_of(shown, RED) < 0.01 and share_of(shown, BLUE) > 0.2


def test_the_preview_takes_two_thirds_of_the_width() -> None:
    """A node is 300 to 450 pixels wide: the person was 80 of them."""
    shown = drawn(LiveView(preview=plain(RED), token_maps=maps(0.3), history=[{"source": 1.0}]))
    red = (np.abs(shown - np.array([255, 0, 0])).max(-1) < 12).any(0)
    assert red.sum() >= WIDTH * 2 / 3


@pytest.mark.parametrize("leakage", [0.0, 0.4, 1.0])
def test_the_bar_of_the_leakage_is_as_long_as_it(leakage: float) -> None:
    bar = np.array([0xC9, 0x3C, 0x5B])
    shown = drawn(LiveView(preview=plain(BLUE), token_maps=maps(leakage), first={"ada": 0.9}))
    long = (shown == bar).all(-1).sum(1).max()
    full = WIDTH - 512 - 2 * 16
    assert abs(long - leakage * full) <= 6  # the mark at the first one covers some


def test_what_is_written_is_seen_and_long_texts_stay_inside() -> None:
    view = LiveView(history=[{"source": 1.0, "identity": 0.5}] * 30, steps=600, phases=[200])
    before = drawn(view)
    for other in (Standing("Step 61 of 600"), Standing("Step 60 of 600", "6:29 left")):
        assert (drawn(view, other)[:112] != before[:112]).any()
        assert (drawn(view, other)[112:] == before[112:]).all()
    long = drawn(view, Standing("Encoding the style's portraits " * 3, "1:23:45 left" * 3))
    assert (long[:80, :12] == 255).all() and (long[:80, -12:] == 255).all()


def test_nothing_known_is_a_picture_too() -> None:
    drawn(LiveView(), Standing(""))
    drawn(LiveView({"The person: 0 photos": []}, note="later"))
    drawn(LiveView(preview=plain(RED, 8, 512), token_maps=maps(None)))


def test_thumbnails_are_small_whatever_comes() -> None:
    pictures = thumbnails([torch.rand(3, 3000, 10), torch.rand(3, 600, 900)] * 20)
    assert len(pictures) == 12
    assert pictures[1].size == (384, 256) and pictures[0].size == (10, 3000)
