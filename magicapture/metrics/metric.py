"""What a metric says of itself: all that scores, tables, the demo and documents need to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..registry import Registry
from .shown import Shown

Place = Literal["headline", "compared", "table", "file"]


@dataclass(frozen=True)
class Metric:
    """One metric of a set of pictures; `METRICS.add(Metric(...))` is all that makes it known.

    name: of its column in files. measure: one value a picture (B,), of which the score is the
    mean; None for one that is measured elsewhere and only described here. help: one sentence.
    title: of its column in tables; the name if not given. unit: "" for a plain number.
    low, high: its range; None where it has no end. better: which way is better; None for neither.
    place: headline: in tables with its interval, and compared between rows; compared: in tables
    and compared; table: in tables; file: in files alone. The demo shows all that it can measure.
    """

    name: str
    measure: Callable[[Shown], Tensor] | None = None
    help: str = ""
    title: str = ""
    unit: str = ""
    low: float | None = 0.0
    high: float | None = None
    better: Literal["higher", "lower"] | None = None
    place: Place = "file"

    @property
    def heading(self) -> str:
        """The title, or else the name in words, and the unit."""
        title = self.title or self.name.replace("_", " ")
        return f"{title}, {self.unit}" if self.unit else title


METRICS: Registry[Metric] = Registry("metric")
"""Every metric by name, in the order in which files have them."""


def score(shown: Shown) -> dict[str, float]:
    """The mean over the pictures of every metric that measures them, by name."""
    return {
        name: float(metric.measure(shown).float().mean())
        for name, metric in METRICS.items()
        if metric.measure is not None
    }
