"""The two figures of docs/photos.md, from the lines of `paperdoll.py --study photos` and `masks`.

python benchmarks/photos_figures.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paperdoll_photos import COUNTS, FAULTS, SHARES
from paperdoll_table import Table
from study import read

from magicapture.metrics import Interval

BASE = "magicapture"
COLOURS = {"identity": "#3b7dd8", "style": "#d8803b", "both": "#444444"}
SMILES = "obeys_expression", "a smile asked for shows", "#4a9b5b"


def table(file: Path) -> Table:
    """All lines of a file, whatever their version."""
    lines = list(read(file).values())
    return Table(lines, list(dict.fromkeys(line["row"] for line in lines)))


def numbers(lines: Table, file: Path) -> None:
    """Scores, how often a smile asked for shows, and a training's seconds, by number of photos."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    scores, time = figure.subplots(1, 2, width_ratios=(2, 1))
    named = {count: f"{count} photos" for count in COUNTS}
    for score, colour in COLOURS.items():
        _line(scores, named, lambda row, c=score: lines.interval(row, c), score, colour)
    column, label, colour = SMILES
    _line(scores, named, lambda row: lines.interval(row, column), label, colour)
    _line(time, named, lambda row: lines.interval(row, "train_seconds"), "training", "#666666")
    scores.set(ylabel="score", ylim=(0, 1.02))
    time.set(ylabel="seconds of one core", ylim=(0, None))
    for axis in (scores, time):
        axis.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, xlabel="photos of the person")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)


def masks(lines: Table, file: Path) -> None:
    """What each fault of the masks changes of identity, style and both, pair by pair."""
    sizes = [(kind, percent) for kind in FAULTS for percent in (0, *SHARES)]
    order = [*(f"{kind} {percent} %" for kind, percent in sizes), "no masks"]
    rows = [row for row in order if row in lines.order][::-1]
    figure = Figure(figsize=(9, 1.1 + 0.33 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (column, colour) in zip(
        figure.subplots(1, len(COLOURS), sharex=True, sharey=True), COLOURS.items(), strict=True
    ):
        axis.axvline(0, color="#999999", linewidth=1)
        for place, row in enumerate(rows):
            found = lines.change(row, BASE, column)
            assert found is not None, f"{row} has no pair that {BASE} has"
            spread = [[found.mean - found.low], [found.high - found.mean]]
            axis.errorbar([found.mean], [place], xerr=spread, color=colour, marker="o", capsize=3)
        axis.set(title=column, yticks=range(len(rows)), yticklabels=rows)
        axis.grid(alpha=0.3)
    figure.supxlabel("difference from exact masks", fontsize=9)
    figure.savefig(file, dpi=110)


def _line(
    axis: Any,
    rows: dict[Any, str],
    value: Callable[[str], Interval | None],
    label: str,
    colour: str,
) -> None:
    """Means with their intervals, of the rows that there are, against the keys."""
    known = {at: found for at, row in rows.items() if (found := value(row)) is not None}
    if not known:
        return
    means = [found.mean for found in known.values()]
    low = [found.mean - found.low for found in known.values()]
    high = [found.high - found.mean for found in known.values()]
    axis.errorbar(list(known), means, (low, high), label=label, color=colour, marker="o", capsize=3)


def main(words: Sequence[str] | None = None) -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(words)
    numbers(table(options.lines / "paperdoll_photos.csv"), options.out / "photos_number.png")
    masks(table(options.lines / "paperdoll_masks.csv"), options.out / "photos_masks.png")


if __name__ == "__main__":
    main()
