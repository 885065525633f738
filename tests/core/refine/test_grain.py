"""Grain and colour against pictures whose grain and colour are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.refine.grain import LEVELS, MatchSettings, bands, match_picture

SIDE = 256


def oval(softness: float = 6) -> Tensor:
    """A feathered mask (1,H,W) in the middle."""
    place = torch.arange(SIDE) - SIDE / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    distance = ((x / 60) ** 2 + (y / 75) ** 2).sqrt() - 1
    mask = (0.5 - distance * 60 / softness).clamp(0, 1)
    return torch.where(mask < 0.002, 0, mask)[None]


def flat(*colour: float) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1).expand(3, SIDE, SIDE).clone()


def grainy(deviation: float, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return flat(0.5, 0.45, 0.4) + deviation * torch.randn(3, SIDE, SIDE, generator=generator)


def inside(image: Tensor, mask: Tensor) -> Tensor:
    return image[:, mask[0] > 0.99]


def test_grain_of_the_picture_appears_in_a_smooth_paste() -> None:
    original, mask = grainy(0.03), oval()
    pasted = torch.where(mask > 0, flat(0.5, 0.45, 0.4), original)
    matched = match_picture(pasted, original, mask, MatchSettings(colour=0))
    for band in range(LEVELS):
        got, wanted = (inside(bands(i)[band], mask).std(dim=1).mean() for i in (matched, original))
        assert 0.8 * wanted < got < 1.1 * wanted
    assert float(inside(pasted, mask).std(dim=1).max()) < 1e-6


def test_half_the_grain() -> None:
    original, mask = grainy(0.03), oval()
    pasted = torch.where(mask > 0, flat(0.5, 0.45, 0.4), original)
    full, half = (
        inside(match_picture(pasted, original, mask, MatchSettings(0, share)), mask)
        .std(dim=1)
        .mean()
        for share in (1, 0.5)
    )
    torch.testing.assert_close(half, full / 2, rtol=0.25, atol=0)


def test_a_paste_with_more_grain_than_the_picture_gets_none() -> None:
    original, mask = grainy(0.01), oval()
    pasted = torch.where(mask > 0, grainy(0.03, seed=2), original)
    matched = match_picture(pasted, original, mask, MatchSettings(colour=0))
    torch.testing.assert_close(matched, pasted, atol=1e-3, rtol=0)


def test_texture_is_not_taken_for_grain() -> None:
    """Half of the picture is striped; its flat half has no grain, so none is added."""
    original, mask = flat(0.5, 0.5, 0.5), oval()
    original[:, : SIDE // 2] += 0.2 * ((torch.arange(SIDE) // 2 % 2) - 0.5)
    pasted = torch.where(mask > 0, flat(0.5, 0.5, 0.5), original)
    matched = match_picture(pasted, original, mask, MatchSettings(colour=0))
    torch.testing.assert_close(matched, pasted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("tint", [(0.1, -0.05, 0.02), (-0.2, -0.2, -0.2)])
def test_a_tint_is_taken_back(tint) -> None:
    original, mask = flat(0.5, 0.45, 0.4), oval()
    original += 0.1 * torch.linspace(-1, 1, SIDE)  # light from one side
    pasted = original + mask * torch.tensor(tint).view(3, 1, 1)
    matched = match_picture(pasted, original, oval(), MatchSettings(grain=0))
    worst = (matched - original)[:, mask[0] > 0].abs().max()
    assert worst < 0.25 * max(abs(t) for t in tint)
    middle = inside(matched - original, mask).mean(dim=1).abs().max()
    assert middle < 0.1 * max(abs(t) for t in tint)


def test_taking_a_tint_back_adds_no_grain() -> None:
    original, mask = flat(0.5, 0.5, 0.5), (oval() > 0.5).float()
    matched = match_picture(original + 0.2 * mask, original, mask)
    torch.testing.assert_close(matched, original, atol=2e-3, rtol=0)


def test_detail_of_the_paste_stays() -> None:
    original, mask = flat(0.5, 0.5, 0.5), oval()
    detail = 0.1 * ((torch.arange(SIDE) // 2 % 2) - 0.5)
    matched = match_picture(original + mask * detail, original, mask, MatchSettings(grain=0))
    got = inside(matched, mask).std()
    torch.testing.assert_close(got, inside(original + detail, mask).std(), rtol=0.05, atol=0)


def test_outside_the_mask_every_bit_stays() -> None:
    original, mask = grainy(0.03), oval()
    pasted = torch.where(mask > 0, flat(0.6, 0.4, 0.4), original)
    matched = match_picture(pasted, original, mask)
    outside = mask[0] == 0
    assert torch.equal(matched[:, outside], pasted[:, outside])
    assert not torch.equal(matched, pasted)


def test_nothing_masked_changes_nothing_and_a_seed_repeats() -> None:
    image = grainy(0.02)
    assert torch.equal(match_picture(image, grainy(0.05), torch.zeros(1, SIDE, SIDE)), image)
    pasted = torch.where(oval() > 0, flat(0.5, 0.45, 0.4), image)
    first, second, other = (
        match_picture(pasted, image, oval(), MatchSettings(seed=seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_picture_that_is_all_mask_keeps_its_grain() -> None:
    image = grainy(0.02)
    whole = torch.ones(1, SIDE, SIDE)
    assert torch.equal(match_picture(image, image, whole, MatchSettings(colour=0)), image)


def test_bad_sizes_and_settings_are_refused() -> None:
    with pytest.raises(InputError, match="one height and width"):
        match_picture(grainy(0.1), grainy(0.1), oval()[:, :9])
    with pytest.raises(InputError, match="grain"):
        MatchSettings(grain=2)
