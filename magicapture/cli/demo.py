"""`magicapture demo`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from ..demo import FAST_STEPS, DemoSettings, require_own, run, write
from ..files import check_writable
from .options import settings_from
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
