"""The picture grid of the tokens' attention, and its leakage figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magicapture.attention import LayerMaps
from magicapture.refocusing import Focus, grid, mean_leakage, region_strip, token_maps

TOKENS = (Focus("ada", "subject", (2,)), Focus("ink", "style", (5,)))


@pytest.fixture
def seen():
    """Two layers of 2x2 and one of 4x4; the left half is the region."""
    keys = ((1, "ada"), (1, "ada (word)"), (1, "ink"))
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    maps = [
        LayerMaps("a", 4, keys, torch.stack([left * 0.4, left, 0.2 * (1 - left)])),
        LayerMaps("b", 4, keys, torch.stack([0.2 * (1 - left), left, 0.2 * (1 - left)])),
        LayerMaps("c", 2, keys, torch.full((3, 4, 4), 0.1)),
    ]
    region = torch.zeros(8, 8)
    region[:, :4] = 1
    return [s for share in (0.0, 0.5) for s in token_maps(maps, 1, TOKENS, region, share)]


def test_token_maps_are_means_over_the_layers_of_a_size(seen) -> None:
    found = {(s.token, s.factor): (s.values.tolist(), round(s.leakage, 6)) for s in seen}
    assert found[("ada", 4)] == (
        [[pytest.approx(0.2), pytest.approx(0.1)]] * 2,
        pytest.approx(1 / 3),
    )
    assert found[("ink", 4)][1] == 0
    assert found[("ada", 2)][1] == found[("ink", 2)][1] == 0.5


def test_mean_leakage_of_each_token(seen) -> None:
    assert mean_leakage(seen) == pytest.approx({"ada": (1 / 3 + 0.5) / 2, "ink": 0.25})
    unknown = token_maps(
        [LayerMaps("c", 2, ((0, "ada"), (0, "ink")), torch.ones(2, 4, 4))], 0, TOKENS, None, 0.0
    )
    assert mean_leakage(unknown) == {} and unknown[0].leakage is None


def test_the_grid_has_a_cell_for_each_step_and_one_for_the_image(seen) -> None:
    plain = grid(seen)
    assert plain.size == (150 + 2 * 128, 22 + 4 * 128)
    shown = grid(seen, torch.zeros(3, 64, 64))
    assert shown.width == plain.width + 128
    pixels = np.asarray(plain).astype(int)
    # The second row is ada at 2x2: its left half brighter than its right, below the label.
    row = pixels[22 + 128 + 30 : 22 + 2 * 128, 150 : 150 + 128].sum(-1)
    assert row[:, :60].min() > row[:, 70:].max()
    over = np.asarray(shown)[22 : 22 + 128, -128:]
    green = (over[..., 1] > 200) & (over[..., 0] < 100)
    columns = np.flatnonzero(green.any(0))
    assert set(columns) <= {63, 64} and green.any(), "the region's border is its right edge"


def test_the_region_of_each_step_is_shown_over_the_image() -> None:
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    shown = region_strip(
        [(0.0, None)] + [(0.1 * i, left) for i in range(1, 10)], torch.ones(3, 9, 9)
    )
    assert shown.size == (8 * 128, 2 * 128)  # ten steps, eight in a line
    pixels = np.asarray(shown).astype(int)[30:128]  # below the labels
    assert pixels[:, :128].min() == 255, "no region yet: the image as it is"
    second = pixels[:, 128:256]
    assert second[:, :63].min() == 255
    assert second[:, 66:].max() < 100
    green = (second[..., 1] > 200) & (second[..., 0] < 100)
    assert set(np.flatnonzero(green.any(0))) == {64}
