"""What a step takes at real shapes, by arithmetic, with each loss on and off.

    python benchmarks/step_operations.py                    every model
    python benchmarks/step_operations.py --models sdxl      one

No step is computed: the planner rehearses each on weights that have a shape and hold nothing
(`magicapture.planning`), so that models fit that would not, and no machine touches the figures.
Operations are those of matrix products, convolutions and attention, forward and backward; how fast
each is done, and what it takes beside them, they do not say. The identity loss acts in every step
here, as in `step_cost`, whose rows these are; the last is what `save_memory` makes of the whole.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from paperdoll_table import markdown
from real_shapes import SHAPES, embedder
from step_cost import PLAIN, ROWS, WHOLE, job_of

from magicapture.planning.rehearsal import rehearse
from magicapture.recipes import fitted

logger = logging.getLogger("step_operations")

SHOWN = (
    PLAIN,
    "+ token vectors",
    "+ masks",
    "+ AR",
    "+ L_id by TAESD",
    WHOLE,
    "whole, in turn, checkpointing",
)


@dataclass(frozen=True)
class Figure:
    """A row of the table; tera: 10^12 operations. gib: of activations and gradients at the most."""

    model: str
    row: str
    tera: float
    ratio: float
    gib: float
    gib_ratio: float


def measure(name: str) -> Iterator[Figure]:
    """The rows of one model."""
    shape = SHAPES[name]
    backbone, face = shape.make(), embedder()
    first = None
    for row in SHOWN:
        recipe = fitted(replace(ROWS[row], resolution=shape.side), backbone.family)
        with backbone.training(None):
            cost = rehearse(job_of(recipe, shape.side), backbone, face).phases[0]
        first = first or cost
        logger.info("%s, %s", shape.title, row)
        yield Figure(
            name,
            row,
            cost.flops / 1e12,
            cost.flops / first.flops,
            cost.activations / 2**30,
            cost.activations / first.activations,
        )


def write(figures: list[Figure], out: Path) -> None:
    """The figures as .csv, and as .md a table for each model."""
    names = [field.name for field in fields(Figure)]
    rows = [[_short(getattr(figure, name)) for name in names] for figure in figures]
    with (out / "step_operations.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        table.writerows(rows)
    parts = [
        "# What a step takes at real shapes, by arithmetic",
        f"`{shlex.join(['python', 'benchmarks/step_operations.py', *sys.argv[1:]])}`, torch "
        f"{torch.__version__}",
        "Batch 3 (source, style, composed), LoRA of rank 16 on cross-attention, weights in "
        "bfloat16. Nothing was computed: these are operations and bytes as the planner's rehearsal "
        "counts them. The identity loss acts in every step here; in training it acts where the "
        "noise is low enough, in about half of the steps.",
    ]
    for name in dict.fromkeys(figure.model for figure in figures):
        parts.append(f"## {SHAPES[name].title}, {SHAPES[name].side} px")
        own = [row[1:] for row in rows if row[0] == name]
        head = ["step", "10^12 operations", "ratio", "GiB beside the weights", "ratio"]
        parts.append(markdown(head, own))
    (out / "step_operations.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    logger.info("wrote step_operations.md and .csv in %s", out)


def _short(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def main() -> None:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    import diffusers  # sets its own level

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("magicapture", diffusers.__name__, "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    write([figure for name in options.models for figure in measure(name)], options.out)


if __name__ == "__main__":
    main()
