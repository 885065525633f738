"""Regions from attention, the guidance scaled by them, and the schedule."""

from __future__ import annotations

import pytest
import torch

from magicapture.errors import InputError
from magicapture.magicface import MagicFaceSettings, guidance_rates
from magicapture.magicface.regions import aggregate, assign, at_size, foreground, smooth, spread


def test_spreading_is_a_quarter_of_one_step_and_three_of_two():
    own = torch.rand(2, 6, 6).softmax(-1)
    cross = torch.rand(2, 6, 5).softmax(-1)
    expected = torch.einsum("bij,bjl->bil", own, cross) / 4
    expected += 3 * torch.einsum("bij,bjk,bkl->bil", own, own, cross) / 4
    torch.testing.assert_close(spread(own, cross), expected)
    torch.testing.assert_close(spread(own, cross).sum(-1), torch.ones(2, 6))


def test_smoothing_keeps_a_plane_and_spreads_a_point():
    assert torch.allclose(smooth(torch.full((1, 2, 5, 4), 0.3)), torch.tensor(0.3))
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1
    line = torch.tensor([0.25, 0.5, 0.25])
    torch.testing.assert_close(smooth(point)[0, 0, 1:4, 1:4], torch.outer(line, line))


def test_every_token_counts_alike_however_much_attention_it_gets():
    maps = [torch.rand(1, 3, 4, 4) * torch.tensor([100.0, 1, 0.01])[:, None, None]]
    maps.append(torch.rand(1, 3, 8, 8))
    means = aggregate(maps, (8, 8)).mean(dim=(-2, -1))
    torch.testing.assert_close(means, torch.ones(1, 3))


def test_a_pixel_goes_to_the_concept_of_its_strongest_token():
    tokens = torch.zeros(1, 5, 1, 4)
    tokens[0, :, 0] = torch.tensor(
        [[1.0, 0, 0, 1.4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]]
    )
    regions = assign(tokens, [[1, 2], [4]], others=0.6)
    assert regions[0, :, 0].tolist() == [[False, True, False, False], [False, False, False, True]]
    larger = assign(tokens, [[1, 2], [4]], others=0.4)  # the word of column 3 counts less
    assert larger[0, 0, 0].tolist() == [False, True, True, False]


@pytest.mark.parametrize("others", [0.3, 0.9, 2.0])
def test_regions_are_disjoint_at_every_size(others):
    regions = assign(torch.rand(3, 9, 8, 6), [[1], [2, 5], [7]], others)
    for size in ((8, 6), (16, 12), (5, 7), (4, 3)):
        assert at_size(regions, size).sum(dim=1).max() <= 1


def test_the_foreground_is_where_the_start_does_not_beat_the_rest():
    tokens = torch.ones(1, 4, 1, 2)
    tokens[0, 0, 0] = torch.tensor([1.8, 0.2])
    tokens[0, 1, 0] = torch.tensor([0.4, 1.6])
    assert foreground(tokens)[0, 0, 0].tolist() == [False, True]


def test_guidance_is_scaled_to_the_foregrounds_strength():
    difference = torch.ones(1, 4, 6, 30)  # its norm is 2 times what is set here
    difference[..., :10] *= 2.0  # the strong concept
    difference[..., 10:20] *= 1.0  # the faint one
    difference[..., 20:] *= 1.5
    regions = torch.zeros(1, 2, 6, 30, dtype=torch.bool)
    regions[:, 0, :, :10] = True
    regions[:, 1, :, 10:20] = True
    rates = guidance_rates(difference, regions, None, guidance=7.5)
    middles = rates[0, 0, 3, [5, 15, 25]]
    torch.testing.assert_close(middles, torch.tensor([0.8, 1.5, 1.0]))  # 1.5 / 2 is cut to 0.8
    strong = guidance_rates(difference, regions, None, guidance=12.0)
    assert strong.max() == pytest.approx(15 / 12)
    nothing = guidance_rates(difference, torch.zeros_like(regions), None, guidance=7.5)
    assert torch.equal(nothing, torch.ones(1, 1, 6, 30))


def test_of_fifty_steps_the_first_21_lay_out():
    settings = MagicFaceSettings()
    stages = [settings.stage(step / 50) for step in range(50)]
    assert stages == ["layout"] * 21 + ["details"] * 29
    assert MagicFaceSettings(switch=0).stage(0) == "details"
    assert MagicFaceSettings(switch=1).stage(0.98) == "layout"
    stopped = [MagicFaceSettings(stop=0.5).stage(step / 10) for step in range(10)]
    assert stopped[4:6] == ["layout", "off"]


def test_settings_have_ranges():
    with pytest.raises(InputError, match="switch"):
        MagicFaceSettings(switch=1.5)
