"""`magicapture demo`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from ..demo import FAST_STEPS, DemoSettings, require_own, run, write
from ..files import check_writable
from .options import option, setting_option, settings_from
from .progress import Progress

logger = logging.getLogger(__name__)


def demo(arguments: argparse.Namespace) -> None:
    """Show the whole method on drawn faces, where the truth is known; nothing to download."""
    settings = settings_from(DemoSettings, arguments, ("identity", "style", "seed", "model"))
    if arguments.fast:
        settings = replace(settings, steps=FAST_STEPS)
    require_own(arguments.out)
    check_writable(arguments.out)
    with Progress(arguments.out) as progress:
        made = run(settings, progress)
    for metric, of in made.scores.items():
        logger.info(
            "%s",
            f"{metric.replace('_', ' '):<16} "
            + "  ".join(f"{n} {v:.3f}" for n, v in of.items() if v is not None),
        )
    for file in write(made, arguments.out):
        logger.info("Wrote %s", file)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    for name in ("identity", "style", "seed", "model"):
        setting_option(parser, DemoSettings, name)
    parser.add_argument(
        "--fast", action="store_true", help=f"{FAST_STEPS} steps: a minute, and a rougher result."
    )
    option(
        parser,
        "--out",
        Path,
        "The folder to write result.png, curves.png and scores.json into.",
        default=Path("magicapture-demo"),
        metavar="DIR",
    )
