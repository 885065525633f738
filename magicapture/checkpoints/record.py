"""What is known of a kept step, the rule by which one is marked, and when to stop."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..metrics import Metric
from .settings import Choice

PATIENCE = 2
"""Kept steps in a row that are worse than the best before them, at which `stop_early` ends."""

COLUMNS = {
    metric.name: metric
    for metric in (
        Metric(
            "both",
            help="Harmonic mean of identity and style, each cut to 0..1; the one alone where the "
            "other is left out.",
            high=1.0,
            better="higher",
        ),
        Metric(
            "identity",
            help="Likeness to the person's photos as a share of their own; no face counts 0. Of a "
            "thing: by DINO, to its photos.",
            low=None,
            better="higher",
        ),
        Metric(
            "style",
            help="Likeness to the style's portraits off the face as a share of their own, relative "
            "to the mean of all training pictures.",
            low=None,
            better="higher",
        ),
        Metric(
            "leakage",
            help="Share of the tokens' attention outside their regions, on noised portraits.",
            high=1.0,
            better="lower",
        ),
        Metric(
            "copies",
            help="Share of pictures that are nearly a training picture or its mirror image.",
            high=1.0,
            better="lower",
        ),
        Metric(
            "obedience",
            help="How much further words in the prompt do of what they do in the base model.",
            low=None,
            better="higher",
        ),
        Metric("faces", help="Share of pictures with a face.", high=1.0, better="higher"),
    )
}
"""The columns of scores, in the order of tables and files."""


@dataclass(frozen=True)
class Record:
    """A kept step.

    pictures: by column, the value of each seed's picture. run: what is measured without pictures.
    """

    step: int
    pictures: Mapping[str, Sequence[float]]
    run: Mapping[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """Means by column, in the order of COLUMNS."""
        means = {name: statistics.fmean(values) for name, values in self.pictures.items()}
        found = {**means, **self.run}
        return {name: round(found[name], 4) for name in COLUMNS if name in found}

    def worth(self, choose: Choice) -> float:
        """What the rule compares: the mean of a column, in which a picture that is a copy has 0.

        Raises InputError where the column was left out.
        """
        if choose == "last":
            return float(self.step)
        if choose not in self.pictures:
            raise not_measured(choose)
        values = self.pictures[choose]
        copies = self.pictures.get("copies", [0.0] * len(values))
        pairs = zip(values, copies, strict=True)
        return statistics.fmean(value * (1 - copy) for value, copy in pairs)

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data; `Record(**...)` makes it again."""
        return {"step": self.step, "pictures": dict(self.pictures), "run": dict(self.run)}


def chosen_by(records: Sequence[Record], choose: Choice) -> str:
    """The choice in words: of both, which one it is where the other is left out."""
    measured = [name for name in ("identity", "style") if name in records[-1].pictures]
    return f"{measured[0]} alone" if choose == "both" and len(measured) == 1 else choose


def not_measured(choose: Choice) -> InputError:
    """The error for a choice whose column is left out."""
    return InputError(
        f"choose is {choose!r}, which is not measured in this run: what it needs is missing. Give "
        "it, or choose another."
    )


def best_of(records: Sequence[Record], choose: Choice) -> Record:
    """The record of the highest worth, the latest of equals; raises InputError for none."""
    if not records:
        raise InputError("No checkpoint is kept yet; train to the first step that is kept.")
    return max(records, key=lambda record: (record.worth(choose), record.step))


def stops(records: Sequence[Record], choose: Choice) -> bool:
    """Whether the last PATIENCE records, by step, are all worse than the best before them."""
    before, after = records[:-PATIENCE], records[-PATIENCE:]
    if not before:
        return False
    best = max(record.worth(choose) for record in before)
    return all(record.worth(choose) < best for record in after)
