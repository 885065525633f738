"""Studies on paperdoll pairs: a CSV that grows line by line, several processes, a table of means.

A line is one row on one pair. It is written as soon as it is there and carries a version, so that
a study that was stopped goes on where it was, and lines of other settings are made again.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a process has a core to itself

import torch
from paperdoll_table import Table, markdown

from magicapture import MagiCaptureError
from magicapture.batch.pool import NEED, Failed, Pool, cluster
from magicapture.metrics import Interval

Line = Mapping[str, Any]
Key = tuple[str, int]  # row and pair

RETRIES = 2  # of an item whose process was lost


def complete(
    make: Callable[[Any], Callable[[Any], Sequence[Line]]],
    plan: object,
    wanted: Mapping[Any, Mapping[Key, str]],
    file: Path,
    workers: int,
) -> list[Line]:
    """Do the items whose lines the file lacks, and return all the lines that are wanted.

    wanted: for each item the versions of the lines that it makes, by row and pair.
    """
    known = read(file)
    missing = [
        item
        for item, lines in wanted.items()
        if any(known.get(key, {}).get("version") != found for key, found in lines.items())
    ]
    carry_out(make, plan, missing, file, workers)
    versions = {key: found for lines in wanted.values() for key, found in lines.items()}
    return [line for key, line in read(file).items() if line["version"] == versions.get(key)]


def carry_out(
    make: Callable[[Any], Callable[[Any], Sequence[Line]]],
    plan: object,
    items: Sequence[object],
    file: Path,
    workers: int,
) -> None:
    """Do the items' work and add their lines to the file as they come.

    make: called once in each process with the plan; what it returns turns an item into lines. The
    processes are those of a batch: one that is lost gives its item to another. Whatever else than
    a MagiCaptureError an item fails of, again and again, ends the study.
    """
    print(f"{len(items)} to do", flush=True)  # noqa: T201
    if not items:
        return
    with cluster(None) as ray:
        actor = ray.remote(Worker)
        pool = Pool(
            ray, lambda: actor.remote(make, plan), lambda facts: None, NEED, workers, RETRIES
        )
        try:
            answers = pool.map(lambda worker, item, tries: worker.lines.remote(item), items)
            for done, answer in enumerate(answers, start=1):
                print(f"{done}/{len(items)}: {_kept(answer, file)}", flush=True)  # noqa: T201
        finally:
            pool.close()


def _kept(answer: tuple[object, Sequence[Line]] | Failed[object], file: Path) -> str:
    """Add an item's lines to the file; what it was, or failed of, in a line."""
    if isinstance(answer, Failed):
        if isinstance(answer.error, MagiCaptureError):  # such as a rate that diverges
            return f"{_title(answer.item)} failed: {answer.error}"
        raise answer.error
    lines = answer[1]
    append(file, lines)
    what = lines[0]["row"] if len(lines) == 1 else f"{len(lines)} rows"
    return f"{what}, pair {lines[0]['pair']}"


def _title(item: object) -> str:
    """An item in a line: of a row and a pair the row's name alone."""
    row, *rest = item if isinstance(item, tuple) else (item,)
    return f"{getattr(row, 'name', row)}, pair {rest[0]}" if rest else f"{row}"


class Worker:
    """Turns items into lines, in a process of its own with one core."""

    def __init__(
        self, make: Callable[[Any], Callable[[Any], Sequence[Line]]], plan: object
    ) -> None:
        torch.set_num_threads(1)
        self._make, self._plan = make, plan
        self._run: Callable[[Any], Sequence[Line]] | None = None

    def facts(self) -> int:
        """The process; it says that the worker is ready."""
        return os.getpid()

    def lines(self, item: object) -> Sequence[Line]:
        """An item's lines."""
        if self._run is None:
            self._run = self._make(self._plan)
        return self._run(item)


def read(file: Path) -> dict[Key, Line]:
    """The lines of a CSV file by row and pair, the newest of each; none where there is no file."""
    if not file.exists():
        return {}
    with file.open(newline="") as opened:
        return {(line["row"], int(line["pair"])): line for line in csv.DictReader(opened)}


def append(file: Path, lines: Sequence[Line]) -> None:
    """Add lines of alike columns; a file that lacks some of them is written anew with them."""
    known = list(read(file).values())
    columns = list(dict.fromkeys([*(known[0] if known else ()), *lines[0]]))
    added = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()} for line in lines
    ]
    if known and columns == list(known[0]):
        with file.open("a", newline="") as opened:
            csv.DictWriter(opened, columns).writerows(added)
        return
    whole = file.with_suffix(".part")
    with whole.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows([*known, *added])
    whole.replace(file)


def command() -> str:
    """The call that makes the table: this one, but for the option that only writes them anew."""
    options = [option for option in sys.argv[1:] if option != "--table"]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *options])


def version(settings: object, files: Iterable[Path]) -> str:
    """A hash of settings, by their repr, and of files."""
    result = hashlib.sha256(repr(settings).encode())
    for file in files:
        result.update(file.read_bytes())
    return result.hexdigest()[:12]


def means(table: Table, rows: Sequence[str], columns: Mapping[str, str]) -> str:
    """The rows' means with 95 % intervals over pairs. columns: name in the file -> heading."""
    body = [[row, *(_told(table.interval(row, column)) for column in columns)] for row in rows]
    return markdown(["row", *columns.values()], body)


def changes(table: Table, rows: Sequence[str], base: str, columns: Mapping[str, str]) -> str:
    """The rows' differences from one of them, pair by pair."""
    body = [
        [row, *(_told(table.change(row, base, column), "+") for column in columns)]
        for row in rows
        if row != base
    ]
    return markdown([f"- {base}", *columns.values()], body)


def _told(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    mean, low, high = (f"{value:{sign}.2f}" for value in found)
    return f"{mean} ({low} to {high})"
