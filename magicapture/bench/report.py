"""The report: one JSON file that grows line by line, and goes on where a bench was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backups import write_all
from ..errors import InputError, StorageError
from ..files import atomic_write
from .columns import COLUMNS, Lines, difference, means
from .plan import Plan, Trial
from .runner import Line

SCHEMA = 1
"""Version of the file's form; docs/bench.md describes it."""

MADE_BY = "magicapture bench"

_LARGEST = 50 * 2**20  # bytes of a report that is read again


class Report:
    """The lines so far with what all of them share; `add` writes the file each time.

    setup: what all lines share; equal in every run that goes on with the file. recipes: by name.
    pairs: facts of each person and style. fresh: an earlier report is kept as a backup, and not
    gone on with. Raises InputError for a file that is there and is no report, or one of another
    setup; StorageError for one that cannot be read.
    """

    def __init__(
        self,
        file: Path,
        setup: Mapping[str, Any],
        recipes: Mapping[str, Any],
        pairs: Lines,
        *,
        fresh: bool = False,
    ) -> None:
        self.file = file
        self.setup = json.loads(json.dumps(setup))
        old = _read(file, fresh)
        self._replaced = fresh and old is not None
        if fresh:
            old = None
        if old is not None and (other := _other(old["setup"], self.setup)):
            raise InputError(
                f"{file} is of a bench with another {', '.join(other)}; give the same as then, "
                "another --out, or --fresh to start over."
            )
        self.recipes = {**(old or {}).get("recipes", {}), **recipes}
        known = [*(old or {}).get("pairs", []), *pairs]
        self.pairs = [*{(pair["person"], pair["style"]): pair for pair in known}.values()]
        self.lines: list[Line] = (old or {}).get("lines", [])

    def missing(self, plan: Plan) -> list[Trial]:
        """The plan's trials that have no line with scores yet.

        Raises InputError for a line made from other photos or another recipe.
        """
        lines = {_key(line): line for line in self.lines}
        todo = []
        for trial in plan.trials():
            line = lines.get((trial.person + 1, trial.style + 1, trial.recipe, trial.seed))
            if line and line["version"] != plan.version(trial):
                raise InputError(
                    f"{self.file} has a line for {trial} from other photos or another recipe; "
                    "give another --out, or --fresh to start over."
                )
            if not line or "failed" in line:
                todo.append(trial)
        return todo

    def add(self, line: Line) -> None:
        """Take a line, in the place of an earlier one of the same trial, and write the file."""
        self.lines = [old for old in self.lines if _key(old) != _key(line)] + [line]
        self.write()

    def write(self) -> None:
        """Write the file; raises StorageError."""
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"

        def write(path: Path) -> None:
            path.write_text(text, "utf-8")

        if self._replaced:
            write_all({self.file: write})
            self._replaced = False
        else:
            atomic_write(self.file, write)

    def of(self, recipe: str) -> Lines:
        """The lines of a recipe."""
        return [line for line in self.lines if line["recipe"] == recipe]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data, with means and differences."""
        first, *others = self.recipes
        return {
            "made_by": MADE_BY,
            "schema": SCHEMA,
            "setup": self.setup,
            "columns": {
                column.metric.name: f"{column.metric.heading}: {column.metric.help}"
                for column in COLUMNS
            },
            "recipes": self.recipes,
            "pairs": self.pairs,
            "means": {
                recipe: {
                    column.metric.name: _told(means(self.of(recipe), column)) for column in COLUMNS
                }
                for recipe in self.recipes
            },
            "differences": {
                other: {
                    column.metric.name: _told(difference(self.of(first), self.of(other), column))
                    for column in COLUMNS
                }
                for other in others
            },
            "lines": self.lines,
        }


def check_report(file: Path, fresh: bool) -> None:
    """Raise InputError for a file that is there and is no report to go on with, or to replace."""
    _read(file, fresh)


def _told(found: tuple[float, float, float] | None) -> list[float] | None:
    return None if found is None else [round(value, 4) for value in found]


def _key(line: Mapping[str, Any]) -> tuple[object, ...]:
    return line["person"], line["style"], line["recipe"], line["seed"]


def _other(old: Any, new: Mapping[str, Any]) -> list[str]:
    """The names of what differs in two setups."""
    if not isinstance(old, dict):
        return ["setup"]
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def _read(file: Path, fresh: bool) -> dict[str, Any] | None:
    """The report that a file holds; None where there is no file. fresh: of any form and content."""
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"{file} is too large for a report; choose another --out.")
        data = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{file} cannot be read ({error}); choose another --out.") from error
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("made_by") != MADE_BY:
        raise InputError(
            f"{file} exists, and is no report of `{MADE_BY}`; choose another --out, or move it "
            "away."
        )
    if fresh:
        return data
    if data.get("schema") != SCHEMA:
        raise InputError(
            f"{file} is a report of form {data.get('schema')}; this version writes form {SCHEMA}. "
            "Choose another --out, or --fresh to start over."
        )
    if not _is_whole(data):
        raise InputError(f"{file} is damaged; choose another --out, or --fresh to start over.")
    return data


def _is_whole(data: Mapping[str, Any]) -> bool:
    """Whether a report has what is read of it again."""
    numbers = ("person", "style")
    kinds = {**dict.fromkeys((*numbers, "seed"), int), "recipe": str, "version": str}
    lists = [data.get("pairs"), data.get("lines")]
    if not all(isinstance(rows, list) and all(isinstance(r, dict) for r in rows) for rows in lists):
        return False
    return (
        isinstance(data.get("recipes"), dict)
        and all(
            all(isinstance(line.get(name), kind) for name, kind in kinds.items())
            and line["version"].isalnum()
            and ("failed" in line or {"scores", "cost", "edits"} <= line.keys())
            for line in data["lines"]
        )
        and all(isinstance(pair.get(name), int) for pair in data["pairs"] for name in numbers)
    )
