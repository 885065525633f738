"""How far a plan is from what then happens: memory before step 1, time after ten steps.

    python benchmarks/planner.py                    every case
    python benchmarks/planner.py --cases doll flux  these alone

Each case runs in a process of its own. It is planned, nothing having been measured, and then
trained. Memory is the most that was resident from before step 1 to the end; the figure beside it is
the part of it that the steps added. Time is the process's own CPU seconds from step 11 to the end,
against those that the first ten steps of each phase foretell: other programs on the machine count
less so, though not nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import torch
from random_models import FULL, FaceEmbedder, build

from magicapture.backbone import Backbone
from magicapture.config import Recipe
from magicapture.demo.example import doll_job
from magicapture.demo.settings import DemoSettings, held_out_pair, recipe_for
from magicapture.faces.embed import FaceEmbedder as Embedder
from magicapture.memory import PeakMemory
from magicapture.paperdoll.model import doll_backbone
from magicapture.paperdoll.weights import loss_embedder
from magicapture.planning import AFTER, Plan, Records, noise_job, planned
from magicapture.recipes import recipe
from magicapture.training import Event, Stepped, Trainer, TrainingJob

logger = logging.getLogger("planner")

Made = tuple[TrainingJob, Backbone, Embedder]

_MIB = 2**20
_NARROW = replace(
    FULL,
    title="SD 1.5's shape, three tenths as wide, 256 px",
    resolution=256,
    unet={"block_out_channels": (96, 192, 384, 384), "cross_attention_dim": 768},
    embedder_width=16,
)
_SAVED = {"batching": "in_turn", "checkpointing": True}


def _steps(of: Recipe, first: int, second: int) -> Recipe:
    counts = first, second
    phases = zip(of.phases, counts, strict=True)
    return replace(of, phases=tuple(replace(p, steps=n, warmup=0) for p, n in phases))


def _doll(model: str, **changes: object) -> Made:
    asked = DemoSettings()
    pair = held_out_pair(asked.identity, asked.style)
    chosen = replace(_steps(recipe_for(model=model), 15, 25), **changes)
    return doll_job(pair, chosen), doll_backbone(model), loss_embedder()


def _narrow(**changes: object) -> Made:
    chosen = replace(_steps(recipe(), 12, 14), resolution=_NARROW.resolution, **changes)
    backbone = build(_NARROW, torch.device("cpu"), torch.float32)
    return noise_job(chosen, _NARROW.resolution), backbone, FaceEmbedder(_NARROW.embedder_width)


CASES: dict[str, Callable[[], Made]] = {
    "doll UNet": lambda: _doll("unet"),
    "doll UNet, save memory": lambda: _doll("unet", **_SAVED),
    "doll transformer": lambda: _doll("transformer"),
    "doll transformer, save memory": lambda: _doll("transformer", **_SAVED),
    "narrow SD 1.5": _narrow,
    "narrow SD 1.5, checkpointing": lambda: _narrow(checkpointing=True),
    "narrow SD 1.5, save memory": lambda: _narrow(**_SAVED),
}


@dataclass(frozen=True)
class Figure:
    """A case: MiB at the most, of them those that training added, and CPU seconds still to go.

    left: from the tenth step of the first phase on; left_2: from that of the second on.
    """

    case: str
    mib_said: float
    mib: float
    added_said: float
    added: float
    left_said: float
    left: float
    left_2_said: float
    left_2: float
    planning: float


def measure(case: str) -> Figure:
    """Plan and train one case in this process, in an empty cache folder."""
    job, backbone, embedder = CASES[case]()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(job, backbone, embedder, records=Records(Path(folder, "plans.json")))
    planning = time.process_time() - started
    device, ticks = torch.device("cpu"), list[tuple[str, float]]()

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            ticks.append((event.phase, time.process_time()))

    memory = PeakMemory(device)
    before = memory.process or 0.0
    with Trainer.open(job, backbone, embedder=embedder, listener=listen) as trainer:
        ticks.append(("", time.process_time()))
        trainer.run()
    most = memory.process or 0.0
    held = plan.room.held / _MIB if plan.room else 0.0
    said = plan.needs / _MIB
    first, second = (_left(plan, ticks, start) for start in (0, job.recipe.phases[0].steps))
    return Figure(case, said, most, said - held, most - before, *first, *second, planning)


def _left(plan: Plan, ticks: list[tuple[str, float]], start: int) -> tuple[float, float]:
    """CPU seconds to the end as said ten steps after step `start`, and as they were."""
    seconds: dict[str, list[float]] = {}
    for (_, before), (phase, after) in pairwise(ticks[: start + AFTER + 1]):
        seconds.setdefault(phase, []).append(after - before)
    means = {phase: sum(taken[1:AFTER]) / len(taken[1:AFTER]) for phase, taken in seconds.items()}
    return plan.seconds_left(start + AFTER, means) or 0.0, ticks[-1][1] - ticks[start + AFTER][1]


def write(figures: list[Figure], out: Path) -> None:
    """The figures as .csv and a table of errors as .md."""
    with (out / "planner.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([field.name for field in fields(Figure)])
        table.writerows([[_short(value) for value in asdict(f).values()] for f in figures])
    lines = [
        "| case | said MiB | was | error | of it added: said | was | CPU s left after 10 steps: "
        "said | was | error | after 10 of phase 2: said | was | error | planning, CPU s |",
        f"|---|{'---:|' * 12}",
    ]
    for f in figures:
        cells = [
            *(f.case, f"{f.mib_said:.0f}", f"{f.mib:.0f}", _error(f.mib_said, f.mib)),
            *(f"{f.added_said:.0f}", f"{f.added:.0f}"),
            *(f"{f.left_said:.1f}", f"{f.left:.1f}", _error(f.left_said, f.left)),
            *(f"{f.left_2_said:.1f}", f"{f.left_2:.1f}", _error(f.left_2_said, f.left_2)),
            f"{f.planning:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    (out / "planner_table.md").write_text("\n".join([*lines, ""]), "utf-8")
    logger.info("wrote planner.csv and planner_table.md in %s", out)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _error(said: float, was: float) -> str:
    return f"{said / was - 1:+.0%}"


def main() -> None:
    """Measure every case in a process of its own and write; with --case print one's figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("magicapture", "diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if arguments.case:
        sys.stdout.write(f"{json.dumps(asdict(measure(arguments.case)))}\n")
        return
    figures = []
    for case in arguments.cases:
        logger.info("%s", case)
        words = [sys.executable, __file__, "--case", case]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        figures.append(Figure(**json.loads(done.stdout.splitlines()[-1])))
        write(figures, arguments.out)


if __name__ == "__main__":
    main()
