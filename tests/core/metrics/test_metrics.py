"""The general metrics against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from magicapture.errors import InputError
from magicapture.metrics import (
    bootstrap,
    both,
    leakages,
    leave_one_out,
    likeness,
    share,
)


def test_the_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap(values)
    error = values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_bootstrap_of_a_coin_holds_the_binomial_quantiles() -> None:
    # Means of 4 draws from {0, 1} are 0 with probability 1/16, so the 2.5 % quantile is 0.
    found = bootstrap([0, 0, 1, 1])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    narrower = bootstrap([0, 0, 1, 1], level=0.8)  # P(mean = 0) < 0.1 <= P(mean <= 1/4)
    assert (narrower.low, narrower.high) == (0.25, 0.75)


def test_the_bootstrap_repeats_and_refuses_nothing() -> None:
    assert bootstrap([1.0, 2.0, 5.0]) == bootstrap([1.0, 2.0, 5.0])
    assert bootstrap([2.0]) == (2.0, 2.0, 2.0)
    with pytest.raises(InputError, match="no values"):
        bootstrap([])


def on_circle(*degrees: float) -> torch.Tensor:
    """Vectors of various lengths in the plane, at these angles."""
    angles = torch.tensor([math.radians(a) for a in degrees])
    lengths = 1.0 + torch.arange(len(degrees))[:, None]
    return lengths * torch.stack([angles.cos(), angles.sin()], dim=1)


def test_likeness_is_the_mean_cosine() -> None:
    references = on_circle(0, 60)
    found = likeness(on_circle(0, 90, 240), references)
    expected = [(1 + 0.5) / 2, (0 + math.cos(math.pi / 6)) / 2, (-0.5 - 1) / 2]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_another_picture_of_the_references_has_the_share_one() -> None:
    # Three at 0, 120 and 240 degrees on a cone: every two of them have the cosine 1 - 1.5 / 2.
    ring = torch.cat(
        [on_circle(0, 120, 240) / torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3, 1)], 1
    )
    assert leave_one_out(ring) == pytest.approx(0.25)
    torch.testing.assert_close(share(ring[:1], ring[1:]), torch.ones(1))
    with pytest.raises(InputError, match="two or more"):
        leave_one_out(ring[:1])
    with pytest.raises(InputError, match="one person"):
        share(ring, on_circle(0, 90))


def test_both_is_harmonic_and_lost_where_one_is() -> None:
    found = both(torch.tensor([0.5, 0.0, 2.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([2 / 3, 0.0, 1.0, 0.0, 0.0]))


def test_leakage_by_mass_and_by_peak() -> None:
    inside = torch.zeros(2, 1, 8, 8)
    inside[:, :, :, :4] = 1  # the left half
    uniform = torch.full((4, 4), 0.1)
    peaked = torch.zeros(4, 4)
    peaked[0, 0], peaked[0, 3] = 0.6, 0.2
    found = leakages(torch.stack([uniform, peaked]), inside)
    torch.testing.assert_close(found.mass, torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(found.peak, torch.tensor([1.0, 1 / 3]))
