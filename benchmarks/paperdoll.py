"""Does the method work? Every row of the table is trained on held-out pairs with known truth.

    python benchmarks/paperdoll.py --workers 2                  # the table, on test pairs
    python benchmarks/paperdoll.py --quick --pairs 1            # a look: minutes, no result
    python benchmarks/paperdoll.py --study ar --pairs 6         # choosing, on development pairs
    python benchmarks/paperdoll.py --first 20 --rows magicapture    # again, on other pairs
    python benchmarks/paperdoll.py --hard all --rows truth magicapture    # from harder photos
    python benchmarks/paperdoll.py --model transformer          # in joint attention

One line of the CSV is one training and its 16 pictures; it is written as soon as it is there, so
a run that was stopped goes on where it was. A line made with other settings or other weights has
another version and is made again. Adapters and pictures stay in `--keep` for rows to come.

What it costs, in seconds of one core (a step of phase 1: 0.075, of phase 2: 0.155, with the text
encoder and self-attention about 0.17; 16 pictures by 20 steps: 7.6, 24 with edit guidance: 17; the
pair, encoding and judging: 10):

    default, its five ablations, two second seeds   8 x (150 x 0.075 + 1050 x 0.155 + 35) = 1670
    paper (accumulates 4 draws)             300 x 4 x 0.075 + 375 x 4 x 0.155 + 35       = 360
    release (one task a step)               300 x 0.04 + 375 x 0.1 + 35                  =  85
    textual inversion, 1,250 steps          1250 x 0.075 + 35                            = 130
    DreamBooth, 500 steps, 50 class images  500 x 0.17 + 50 x 30 x 0.045 + 35            = 190
    Custom Diffusion, 188 steps, 50 images  188 x 0.16 + 50 x 30 x 0.045 + 35            = 130
    untrained, truth, MagicFace                                                           120

In all 2,690 s a pair: 20 pairs take 15 hours of one core, 7.5 hours of two.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from study import carry_out, command, read  # first: it gives each process one core

# isort: split
import torch
from paperdoll_rows import Row, rows, studies
from paperdoll_run import Bench, Plan, pair_seeds
from paperdoll_table import NOTES, Table, examples

from magicapture.paperdoll import Split
from magicapture.paperdoll.hardships import HARDSHIPS
from magicapture.paperdoll.model import ModelName
from magicapture.paperdoll.weights import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
BASE = "magicapture"  # the row that others are compared with


def main() -> None:
    options = _arguments()
    split = Split[options.split.upper()]
    every = studies()[options.study] if options.study else rows()
    chosen = _chosen(every, options.rows)
    stem = "_".join(
        ["paperdoll"]
        + (["transformer"] if options.model == "transformer" else [])
        + ([options.study] if options.study else [])
        + (["development"] if split is Split.DEVELOPMENT and not options.study else [])
        + ([f"from_{options.first}"] if options.first else [])
        + (["hard", options.hard.replace(" ", "_")] if options.hard else [])
        + (["quick"] if options.quick else [])
    )
    plan = Plan(
        options.weights,
        split,
        options.keep / stem,
        options.quick,
        options.in_words,
        options.hard,
        options.model,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{stem}.csv"
    known = {key: line["version"] for key, line in read(file).items()}
    versions = {row.name: plan.version(row) for row in chosen}
    missing = [
        (row, index)
        for index in range(options.first, options.first + options.pairs)
        for row in chosen
        if known.get((row.name, index)) != versions[row.name]
    ]
    if not options.table:
        carry_out(Bench, plan, missing, file, options.workers)
    _write(plan, every, file)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="first pair, in a file of its own")
    parser.add_argument("--split", choices=("development", "test"), help="default: test")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="default: all of them")
    parser.add_argument("--study", choices=list(studies()), help="variants, on development pairs")
    parser.add_argument("--quick", action="store_true", help="12 steps, 4 pictures: a look")
    parser.add_argument(
        "--in-words", action="store_true", help="draw edits also as words of the prompt"
    )
    parser.add_argument("--hard", choices=HARDSHIPS, help="make the person's photos hard")
    parser.add_argument("--model", choices=get_args(ModelName), default="unet")
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    parser.add_argument("--keep", type=Path, default=ROOT / "build/benchmark")
    parser.add_argument("--table", action="store_true", help="write the table anew, run nothing")
    options = parser.parse_args()
    if options.study and options.split == "test":
        parser.error("a study chooses settings, so it runs on development pairs alone")
    options.split = options.split or ("development" if options.study else "test")
    return options


def _chosen(every: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """The rows asked for, by name; all of them where none are."""
    known = {row.name: row for row in every}
    strange = [name for name in names or () if name not in known]
    if strange:
        sys.exit(f"There is no row {strange[0]!r}; there are: {', '.join(known)}.")
    return [known[name] for name in names or known]


def _write(plan: Plan, every: Sequence[Row], file: Path) -> None:
    """The table and the pictures of what the file holds."""
    known = {row.name: plan.version(row) for row in every}
    lines = [line for line in read(file).values() if line["version"] == known.get(line["row"])]
    table = Table(lines, [row.name for row in every])
    if not table.order:
        print(f"{file} has no line of these settings and weights")  # noqa: T201
        return
    drawn = Counter(pair for _, pair in table.by)
    pair = min(drawn, key=lambda pair: (-drawn[pair], pair))  # the first that most rows drew
    parts = [f"# {file.stem}", f"`{command()}`", _machine(plan), table.scores(), NOTES]
    if BASE in table.order and len(table.order) > 1:
        parts += [f"Differences from {BASE} over the same pairs:", table.differences(BASE)]
    parts += ["Identity by band of skin tone:", table.tones()]
    parts += [f"![both, identity and style]({file.stem}.png)", f"![pair {pair}]({file.stem}.jpg)"]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", "utf-8")
    table.draw(file.with_suffix(".png"))
    seeds, sheet = pair_seeds(plan.split, pair), file.with_suffix(".jpg")
    examples(plan.keep, table.order, pair, seeds, sheet, plan.hard)
    print(table.scores())  # noqa: T201


def _machine(plan: Plan) -> str:
    return (
        f"{plan.split.name.lower()} pairs, {f'hard photos ({plan.hard}), ' if plan.hard else ''}"
        f"{plan.pictures[0]} pictures each, "
        f"{plan.sampling.steps} steps of {plan.sampling.sampler} at guidance "
        f"{plan.sampling.guidance:g}; means over pairs with 95 % bootstrap intervals. "
        f"torch {torch.__version__}, {os.cpu_count()} cores of "
        f"{platform.processor() or platform.machine()}."
    )


if __name__ == "__main__":
    main()
