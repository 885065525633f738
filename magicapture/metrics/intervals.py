"""Intervals of means by the bootstrap, so that a difference is told from chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError

_TOGETHER = 2_000_000  # numbers drawn at a time


class Interval(NamedTuple):
    """A mean and the interval that holds it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Sequence[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of independent values with its percentile interval (Efron 1979).

    Pass one value for each independent trial: the mean over a pair's pictures, not each picture;
    for two methods the pair's difference. Raises InputError for no values.
    """
    if not len(values):
        raise InputError("There are no values to take an interval of.")
    data = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    part = max(1, _TOGETHER // len(data))  # the same numbers, however many at a time
    sizes = [min(part, draws - start) for start in range(0, draws, part)]
    means = np.concatenate(
        [data[rng.integers(len(data), size=(size, len(data)))].mean(axis=1) for size in sizes]
    )
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(data.mean()), float(low), float(high))


def bootstrap_pairs(values: Sequence[float]) -> Interval:
    """The mean over all pairs of items, with its interval over items.

    values: each item's mean over its pairs. An item is in many pairs, so that the mean moves with
    it twice as far as a mean of items does: 2 v - mean is its pseudo-value, to first order
    (Hoeffding 1948; Arvesen 1969). Raises InputError for no values.
    """
    mean = sum(values) / max(1, len(values))
    return bootstrap([2 * value - mean for value in values])
