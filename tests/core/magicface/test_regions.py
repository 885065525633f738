"""Regions from attention, the guidance scaled by them, and the schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture.attention import TappedTorch
from magicapture.errors import InputError
from magicapture.magicface import MagicFaceSettings, Rows, Segmenter, guidance_rates, share_at
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
    line = torch.tensor([0.211942, 0.576117, 0.211942])  # exp(-x^2), to a sum of 1
    torch.testing.assert_close(smooth(point)[0, 0, 1:4, 1:4], torch.outer(line, line))


def test_smoothing_mirrors_the_edges():
    column = torch.tensor([[[[1.0], [0.0], [0.0]]]])
    beside, middle = 0.211942, 0.576117
    got = smooth(column.expand(-1, -1, -1, 3))[0, 0, :, 1]
    torch.testing.assert_close(got, torch.tensor([middle, beside, 0.0]))
    second = smooth(column.flip(2).roll(-1, 2).expand(-1, -1, -1, 3))[0, 0, :, 1]
    torch.testing.assert_close(second, torch.tensor([2 * beside, middle, 2 * beside]))
    assert smooth(torch.ones(1, 1, 1, 4)).allclose(torch.tensor(1.0))


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
    start = torch.full((4, 8), 0.2)
    start[:, :4] = 0.8
    maps = torch.stack([start, 0.9 * (1 - start), 0.1 * (1 - start)])[None]
    assert foreground([maps], (4, 8))[0, 0].any(0).tolist() == [False] * 4 + [True] * 4
    assert foreground([maps], (4, 8))[0, 0].all(0).tolist() == [False] * 4 + [True] * 4


def test_a_faint_token_has_little_say_in_the_foreground():
    """What the attention is sums over tokens; a faint one scaled to a mean of 1 would drown it."""
    start = torch.full((6, 8), 0.3)
    start[:, :4] = 0.7
    faint = torch.full((6, 8), 1e-4)
    faint[:, :4] = 1e-2  # looks where nothing is drawn
    maps = torch.stack([start, 1 - start - faint, faint])[None]
    assert foreground([maps], (6, 8))[0, 0].all(0).tolist() == [False] * 4 + [True] * 4


# -- the method's formulas, written out ---------------------------------------------------------


def blurred(values: np.ndarray) -> np.ndarray:
    """(L,h,w) under exp(-(x^2 + y^2)) on 3x3 cells, the picture mirrored at its edges."""
    wide = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    weights = {(y, x): math.exp(-(y * y + x * x)) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    h, w = values.shape[-2:]
    total = sum(
        weight * wide[:, 1 + y : 1 + y + h, 1 + x : 1 + x + w] for (y, x), weight in weights.items()
    )
    return total / sum(weights.values())


def seen_by_the_method(
    layers: list[tuple[Tensor, Tensor]], columns: list[list[int]], others: float, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Regions (K,side,side) of the row 1 and the foreground (side,side) of the row 0."""
    tokens, start, rest = 0.0, 0.0, 0.0
    for own, cross in layers:
        for row in (0, 1):
            s, c = own[row].double().numpy(), cross[row].double().numpy()
            spread_map = (s @ c + 3 * (s @ s @ c)) / 4
            cells = math.isqrt(len(s))
            square = torch.from_numpy(spread_map.T.reshape(1, -1, cells, cells))
            large = F.interpolate(square, (side, side), mode="bilinear")[0].numpy()
            smoothed = blurred(large)
            if row == 1:
                tokens = tokens + smoothed / smoothed.mean((1, 2), keepdims=True)
            else:
                all_others = smoothed[1:].sum(0)
                start = start + smoothed[0] / smoothed[0].mean()
                rest = rest + all_others / all_others.mean()
    owner = {column: k for k, own in enumerate(columns) for column in own}
    factors = np.array([1.0 if c in owner else others for c in range(len(tokens))])
    best = (tokens * factors[:, None, None]).argmax(0)
    regions = np.array([np.isin(best, own) for own in columns])
    return regions, rest > start


@pytest.mark.parametrize("others", [0.6, 0.9])
def test_what_a_pass_shows_is_what_the_formulas_give(tiny, others):
    unet = tiny.unet().requires_grad_(False)
    for module in unet.modules():  # attention that is far from even
        if hasattr(module, "to_q"):
            module.to_q.weight.mul_(6)
    kept: dict[str, dict[str, Tensor]] = {}
    handles = []
    columns, length, size = [[2, 3], [5]], 9, (16, 16)
    segmenter = Segmenter(TappedTorch.of(unet), columns, length, others)
    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            for part in ("to_q", "to_k"):
                store = kept.setdefault(name, {})
                handles.append(
                    module.get_submodule(part).register_forward_hook(
                        lambda _m, _a, out, store=store, part=part: store.update({part: out})
                    )
                )
    with segmenter.recording():
        unet(torch.randn(2, 4, *size), torch.tensor([400, 400]), 3 * torch.randn(2, length, 32))
        seen = segmenter.look(Rows([1], [0]))
    maps = {}
    for name, of in kept.items():
        heads = unet.get_submodule(name).heads
        query, key = (of[p].unflatten(-1, (heads, -1)).transpose(1, 2) for p in ("to_q", "to_k"))
        logits = query @ key.mT / query.shape[-1] ** 0.5
        maps[name] = logits.softmax(-1).mean(1)
    layers = [(m, maps[n[:-1] + "2"]) for n, m in maps.items() if n.endswith("attn1")]
    regions, ground = seen_by_the_method(layers, columns, others, 16)
    assert 0 < ground.mean() < 1 and regions.any()
    assert np.array_equal(seen.foreground[0, 0].numpy(), ground)
    assert np.array_equal(seen.regions[0].numpy(), regions)


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


def sigma_at(timestep: float) -> float:
    """The noise level of Stable Diffusion's schedule at a timestep, which may lie between two."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.interp(timestep, np.arange(1000), np.cumprod(1 - betas))
    return float(((1 - abar) / abar) ** 0.5)


def test_a_noise_level_has_its_share_whatever_the_steps():
    """The release draws 50 steps of t = 981, 961, ... and lays out in the first 21 of them."""
    settings = MagicFaceSettings()
    release = [settings.stage(share_at(sigma_at(981 - 20 * i))) for i in range(50)]
    assert release == ["layout"] * 21 + ["details"] * 29
    ours = [settings.stage(share_at(sigma_at(999 * (1 - i / 50)))) for i in range(50)]
    assert ours == release
    assert share_at(sigma_at(581)) == 0.4
    assert [share_at(s) for s in (0.0, 1e9)] == [0.981, 0.0]
    for steps in (6, 13, 20, 30):
        for ratio in (1.0, 7.0):  # even in sigma^(1/ratio), as Karras' are
            ends = (14.6 ** (1 / ratio), 0.03 ** (1 / ratio))
            levels = np.linspace(*ends, steps) ** ratio
            stages = [settings.stage(share_at(level)) for level in levels]
            assert stages == ["layout" if s > 2.13 else "details" for s in levels]


def test_settings_have_ranges():
    with pytest.raises(InputError, match="switch"):
        MagicFaceSettings(switch=1.5)
