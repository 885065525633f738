"""`magicapture demo`."""

from __future__ import annotations

import argparse
import logging

from ..demo import FAST_STEPS, DemoSettings, run, write
from ..files import check_writable
from .progress import Progress

logger = logging.getLogger(__name__)


def demo(arguments: argparse.Namespace) -> None:
    """Show the whole method on drawn faces, where the truth is known; nothing to download."""
    chosen = {
        n: v for n in ("identity", "style", "seed") if (v := getattr(arguments, n)) is not None
    }
    if arguments.fast:
        chosen["steps"] = FAST_STEPS
    settings = DemoSettings(**chosen)
    check_writable(arguments.out)
    with Progress(arguments.out) as progress:
        made = run(settings, progress)
    for measure, of in made.scores.items():
        logger.info(
            "%s",
            f"{measure.replace('_', ' '):<14} "
            + "  ".join(f"{n} {v:.3f}" for n, v in of.items() if v is not None),
        )
    for file in write(made, arguments.out):
        logger.info("Wrote %s", file)
