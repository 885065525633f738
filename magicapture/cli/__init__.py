"""The command line: its commands are in `arguments.parser`.

Exit codes: 0 done, 1 a bug, 2 something given cannot be used, 130 interrupted (Ctrl-C, SIGTERM).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import MagiCaptureError
from ..interrupts import interruptible
from ..memory import memory_explained
from .arguments import parser

__all__ = ["main"]

logger = logging.getLogger(__name__)

DONE, BUG, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
PACKAGE = __name__.partition(".")[0]

_IN_LESS_MEMORY = (  # outside of training, which has advice of its own
    "Draw smaller pictures, close other programs that use the GPU, or take --device cpu.",
    "Draw smaller pictures, give fewer or smaller photos, or close other programs.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; argparse itself exits with 2."""
    arguments = parser().parse_args(argv)
    with _logging(arguments.verbose), interruptible():
        try:
            with memory_explained(*_IN_LESS_MEMORY):
                arguments.run(arguments)
        except KeyboardInterrupt:
            logger.info("Interrupted.")
            return INTERRUPTED
        except MagiCaptureError as error:
            logger.error("%s", error, exc_info=arguments.verbose)
            return BAD_INPUT
        except Exception as error:
            logger.error(
                "%s: %s (a bug; --verbose shows where)",
                type(error).__name__,
                error,
                exc_info=arguments.verbose,
            )
            return BUG
    return DONE


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Lines on stderr, above a progress bar; the logging of a program that calls `main` is kept."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    root = logging.getLogger(PACKAGE)
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        with logging_redirect_tqdm([root]):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


class _Lines(logging.Formatter):
    """The message alone, with its level where that matters."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"magicapture: {record.levelname.lower()}: {text}"
        return text
