"""Builds the paperdoll world's weights from nothing: `python -m pretrain`.

Each stage saves as it goes; started again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import stage_readers, stage_transformer, stage_unet, stage_vae
from .card import write_card
from .dataset import Shards, prepare
from .export import export
from .loop import Trainer
from .report import draw, report

log = logging.getLogger(__name__)

STAGES = ("vae", "unet", "embedders", "detector", "parser", "style", "probe", "transformer")
_READERS = {
    "embedders": tuple(stage_readers.EMBEDDERS),
    "detector": ("finder",),
    "parser": ("parser",),
    "style": ("style",),
    "probe": ("probe",),
}


@dataclass(frozen=True)
class Options:
    """What a run was asked for; None leaves a stage's own default."""

    out: Path
    device: torch.device
    steps: int | None = None
    batch: int | None = None
    until: float | None = None
    compiled: bool = False


def main(arguments: list[str] | None = None) -> None:
    """Trains the stages asked for."""
    parser = argparse.ArgumentParser(prog="python -m pretrain")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder for data and weights")
    parser.add_argument("--data", type=Path, help="folder for rendered dolls (default OUT/data)")
    parser.add_argument("--dolls", type=int, default=61_440, help="training pictures")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    parser.add_argument("--batch", type=int, help="instead of the stage's own size")
    parser.add_argument("--minutes", type=float, help="stop, saved, after this long")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument(
        "--compile", action="store_true", help="a minute, then UNet and transformer are faster"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report", action="store_true", help="scores and sheets at the end")
    parser.add_argument(
        "--export", type=Path, help="folder for the finished weights and their card"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    shards = prepare(given.data or given.out / "data", given.dolls, workers=given.workers)
    until = time.time() + 60 * given.minutes if given.minutes else None
    device = torch.device(given.device)
    options = Options(given.out, device, given.steps, given.batch, until, given.compile)
    for stage in STAGES if given.stage == "all" else (given.stage,):
        run(stage, shards, options)
    if given.report:
        report(given.out)
        draw(given.out)
    if given.export:
        export(given.out, given.export)
        write_card(given.out, given.export)


def run(stage: str, shards: Shards, options: Options) -> list[Trainer]:
    """Trains one stage to its end, or to the time allowed."""
    start = time.monotonic()
    if stage in _READERS:
        trainers = [_reader(name, shards, options) for name in _READERS[stage]]
    else:
        module = {"vae": stage_vae, "unet": stage_unet, "transformer": stage_transformer}[stage]
        plan = replace(module.PLAN, steps=options.steps or module.PLAN.steps)
        batch = options.batch or module.BATCH
        own = {"compiled": options.compiled} if stage != "vae" else {}
        trainers = [
            module.train(shards, options.out, options.device, plan, batch, options.until, **own)
        ]
    log.info("%s took %.0f s", stage, time.monotonic() - start)
    return trainers


def _reader(name: str, shards: Shards, options: Options) -> Trainer:
    plan = stage_readers.plan_of(name, options.steps)
    batch = options.batch or stage_readers.BATCH
    return stage_readers.train(
        name, shards, options.out, options.device, plan, batch, options.until
    )


if __name__ == "__main__":
    main()
