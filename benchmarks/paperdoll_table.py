"""The paperdoll benchmark's lines as Markdown and as pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from magicapture.metrics import METRICS, Interval, Metric, bootstrap
from magicapture.paperdoll.captions import TONES
from magicapture.paperdoll.pairs import make_pair

Line = Mapping[str, str]

for metric in (
    Metric("sample_seconds", help="Seconds of one core to draw the composed prompt.", unit="s"),
    Metric(
        "train_seconds",
        help="Seconds of one core; they compare within the rows of one day and machine.",
        title="training",
        unit="s",
        better="lower",
        place="table",
    ),
):
    METRICS.add(metric)

IN_TABLES = sorted(
    (metric for metric in METRICS.values() if metric.place != "file"),
    key=lambda metric: ("headline", "compared", "table").index(metric.place),
)
SCORES = {metric.name: metric.heading for metric in IN_TABLES if metric.place == "headline"}
"""What every table of drawn pairs has; the names in the file, and the headings."""

COLUMNS = {metric.name: metric.heading for metric in IN_TABLES}
COMPARED = tuple(metric.name for metric in IN_TABLES if metric.place != "table")


def _notes() -> str:
    """What the columns mean, and the rows that need words."""
    said = [(metric.heading, metric.help) for metric in IN_TABLES if metric.help]
    said += [
        (
            "row magicface",
            "nothing is trained; the style is said in words, and shown by the clothes and the "
            "background of one portrait, the person by the face of one photo.",
        ),
        ("row truth", "true compositions in unseen poses, the ceiling."),
    ]
    return "\n".join(
        textwrap.fill(f"{name}: {text}", 100, initial_indent="- ", subsequent_indent="  ")
        for name, text in said
    )


NOTES = _notes()


class Table:
    """The lines of a benchmark by row and pair."""

    def __init__(self, lines: Sequence[Line], order: Sequence[str]) -> None:
        self.by = {(line["row"], int(line["pair"])): line for line in lines}
        self.order = [name for name in order if any(row == name for row, _ in self.by)]

    def values(self, row: str, column: str, tone: str | None = None) -> dict[int, float]:
        """A column's value for each pair that has one."""
        return {
            pair: float(line[column])
            for (name, pair), line in sorted(self.by.items())
            if name == row and line.get(column) and tone in (None, line["tone"])
        }

    def interval(self, row: str, column: str, tone: str | None = None) -> Interval | None:
        """The mean over pairs with its interval, None where there is nothing."""
        values = list(self.values(row, column, tone).values())
        return bootstrap(values) if values else None

    def change(self, row: str, base: str, column: str) -> Interval | None:
        """The mean of row - base, pair by pair."""
        own, other = self.values(row, column), self.values(base, column)
        common = sorted(own.keys() & other.keys())
        return bootstrap([own[pair] - other[pair] for pair in common]) if common else None

    # -- Markdown -----------------------------------------------------------------------------

    def scores(self) -> str:
        """Every row's means; the interval where it matters most. No column that nothing is in."""

        def cell(row: str, column: str) -> str:
            found = self.interval(row, column)
            if found is None:
                return ""
            if METRICS[column].unit == "s":
                return f"{found.mean:.0f}"
            return _said(found) if column in SCORES else f"{found.mean:.3f}"

        known = [c for c in COLUMNS if any(self.values(name, c) for name in self.order)]
        body = [
            [name, str(len(self.values(name, "both"))), *(cell(name, c) for c in known)]
            for name in self.order
        ]
        return markdown(["row", "pairs", *(COLUMNS[c] for c in known)], body)

    def differences(self, base: str) -> str:
        """How each row differs from one of them, over the same pairs."""
        body = [
            [name, *(_said(self.change(name, base, column), "+") for column in COMPARED)]
            for name in self.order
            if name not in (base, "truth")
        ]
        return markdown([f"row - {base}", *(COLUMNS[c] for c in COMPARED)], body)

    def tones(self) -> str:
        """Identity by band of skin tone."""
        body = [
            [name, *(_said(self.interval(name, "identity", tone)) for tone in TONES)]
            for name in self.order
        ]
        return markdown(["identity", *TONES], body)

    # -- pictures -----------------------------------------------------------------------------

    def draw(self, file: Path) -> None:
        """The rows' "both", identity and style with their intervals."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 0.9 + 0.34 * len(self.order)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 3, sharey=True)
        places = np.arange(len(self.order))[::-1]
        for axis, column in zip(axes, ("both", "identity", "style"), strict=True):
            found = [self.interval(name, column) for name in self.order]
            means = np.array([f.mean if f else np.nan for f in found])
            low, high = (
                np.array([getattr(f, e) if f else np.nan for f in found]) for e in ("low", "high")
            )
            ours = [
                "#3b7dd8" if name.startswith("magicapture") else "#7a7a7a" for name in self.order
            ]
            axis.barh(places, means, xerr=(means - low, high - means), color=ours, height=0.6)
            axis.set_title(column)
            axis.set_xlim(0, 1.1)
            axis.set_yticks(places, self.order)
            axis.grid(axis="x", alpha=0.3)
        figure.savefig(file, dpi=110)


def examples(
    keep: Path,
    order: Sequence[str],
    pair: int,
    seeds: tuple[int, int],
    file: Path,
    hard: str | None = None,
) -> None:
    """A sheet of one pair: photos, portraits, then each row's pictures, 5 of each, labelled.

    hard: what makes the photos hard; see `make_pair`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = make_pair(*seeds, hard=hard)
    strips = {
        "the person": np.concatenate([doll.image for doll in own.source], -1).transpose(1, 2, 0),
        "the style": np.concatenate([doll.image for doll in own.reference], -1).transpose(1, 2, 0),
    }
    for name in order:
        strip = keep / f"{name} {pair}" / "pictures.png"
        if strip.exists():
            strips[name] = np.asarray(Image.open(strip, formats=["PNG"]))[
                :, : 5 * own.source[0].image.shape[-1]
            ]
    figure = Figure(figsize=(8.4, 1.35 * len(strips)))
    FigureCanvasAgg(figure)
    rows = np.atleast_1d(figure.subplots(len(strips), 1))
    figure.subplots_adjust(left=0.19, right=0.995, bottom=0, top=1, hspace=0.03)
    for axis, (name, strip) in zip(rows, strips.items(), strict=True):
        axis.imshow(strip)
        axis.set_ylabel(textwrap.fill(name, 18), rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=100, pil_kwargs={"quality": 88})


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _said(found: Interval | None, sign: str = "") -> str:
    """A mean with its interval; of a single pair the mean alone."""
    if found is None:
        return ""
    mean, low, high = (f"{value:{sign}.3f}" for value in found)
    return mean if found.low == found.high else f"{mean} [{low}, {high}]"
