"""`magicapture batch`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch import At, BatchSettings, Record, carry_out, counts, head, read_jobs, rows
from ..errors import InputError
from .batch_jobs import JobReader, TrainLoader
from .options import option, require_range, require_text
from .progress import clock

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)


def batch(arguments: argparse.Namespace) -> None:
    """Train many jobs of a file, on this machine or on a Ray cluster, each to its end."""
    require_text("--out", arguments.out)
    require_range("--cpus", arguments.cpus, 1, 4096)
    require_range("--retries", arguments.retries, 0, 1000)
    if arguments.gpus is not None:
        require_range("--gpus", arguments.gpus, 0, 64)
    if arguments.workers is not None:
        require_range("--workers", arguments.workers, 1, 100_000)
    file = arguments.jobs
    jobs = read_jobs(file, JobReader(file.absolute().parent))
    out = arguments.out if "://" in arguments.out else str(Path(arguments.out).absolute())
    settings = BatchSettings(
        out,
        arguments.address,
        arguments.gpus,
        arguments.cpus,
        arguments.workers,
        arguments.retries,
        arguments.fresh,
        not arguments.no_pictures,
    )
    with _Table() as table:
        try:
            records = carry_out(jobs, TrainLoader, settings, table)
        except KeyboardInterrupt:
            logger.info("Stopped. The same command goes on from there.")
            raise
    for line in _aligned([head(records), *rows(records)]):
        logger.info("%s", line)
    lost = [record for record in records if record.outcome != "finished"]
    for record in lost:
        logger.warning("%s", f"{record.name} (line {record.line}): {record.reason}")
    if lost:
        raise InputError(
            f"{counts(records, len(jobs))} The same command tries again those that are not."
        )
    logger.info("%s", counts(records, len(jobs)))


class _Table:
    """A batch on the terminal: a bar of all jobs, below it one for each that is being trained."""

    _MOST = 24  # bars at a time

    def __init__(self) -> None:
        self._all: tqdm[Any] | None = None
        self._bars: dict[str, tqdm[Any]] = {}

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def begin(self, stage: str, jobs: int) -> None:
        """A stage begins."""
        self._close()
        self._all = _bar(stage, jobs, "job", 0)

    def at(self, at: At) -> None:
        """A job has done a step."""
        if at.name not in self._bars and len(self._bars) < self._MOST:
            taken = {abs(bar.pos) for bar in self._bars.values()}
            free = min({*range(1, self._MOST + 1)} - taken)
            self._bars[at.name] = _bar(f"{at.name} on {at.machine}", at.steps, "it", free)
        if bar := self._bars.get(at.name):
            bar.update(at.step - bar.n)

    def done(self, record: Record) -> None:
        """A job has ended."""
        if bar := self._bars.pop(record.name, None):
            bar.close()
        if self._all is not None:
            self._all.update()
        took = f" in {clock(record.total)}" if record.total else ""
        logger.info("%s", f"{record.name}: {record.outcome}{took}. {record.reason}".rstrip())

    def _close(self) -> None:
        for bar in (*self._bars.values(), *([self._all] if self._all else [])):
            bar.close()
        self._bars, self._all = {}, None


def _bar(title: str, total: int, unit: str, position: int) -> tqdm[Any]:
    from tqdm import tqdm

    silent = not sys.stderr.isatty()  # a log gets a line a job instead
    return tqdm(desc=title, total=total, unit=unit, position=position, leave=False, disable=silent)


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `batch`."""
    jobs = "A YAML file of jobs, each a mapping: person, style, base, out, and what train takes."
    parser.add_argument("jobs", metavar="JOBS", type=Path, help=jobs)
    where = "A folder that all machines see, or an address that fsspec knows (s3://bucket/run)."
    option(parser, "--out", str, where, default="magicapture-batch", metavar="DIR")
    usual = BatchSettings("")
    option(parser, "--address", str, "Of a Ray cluster.", shown="one on this machine, for as long")
    option(parser, "--gpus", float, "GPUs that a job takes.", shown="1 where there are any")
    option(parser, "--cpus", int, "CPU cores that a job takes.", default=usual.cpus)
    option(parser, "--workers", int, "Jobs at a time.", shown="as many as the cluster takes")
    option(
        parser,
        "--retries",
        int,
        "Tries of a job after the first, where it fails or its worker is lost.",
        default=usual.retries,
    )
    add = parser.add_argument
    add("--fresh", action="store_true", help="Run finished jobs again.")
    add("--no-pictures", action="store_true", help="Draw no picture of each job for the page.")
