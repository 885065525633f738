"""An evaluation: a line for each picture, means with their intervals, and what was wrong."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files import atomic_write
from ..metrics import Interval, bootstrap, bootstrap_pairs
from ..person import OF_THE_LOSS
from .columns import COLUMNS
from .tone import band

JSON, CSV, PAGE = "evaluation.json", "evaluation.csv", "evaluation.html"
"""The files of an evaluation."""

COMMAND = "magicapture evaluate"

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Line:
    """A picture's values by column, how many faces it has, and a JPEG of it."""

    name: str
    values: Mapping[str, float | None]
    faces: int
    thumbnail: bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What a viewer should know of it."""
        notes = []
        if self.faces != 1:
            notes.append(f"{self.faces} faces" if self.faces else "no face")
        if self.values.get("copies"):
            notes.append("a copy of a training picture")
        return tuple(notes)

    @property
    def band(self) -> str | None:
        """The band of its skin tone, where that was read."""
        tone = self.values.get("tone")
        return None if tone is None else band(tone)


@dataclass(frozen=True, eq=False)
class Group:
    """The pictures of one adapter or folder. lost: those that could not be read, and why."""

    name: str
    lines: tuple[Line, ...]
    lost: tuple[str, ...] = ()

    def mean(self, column: str) -> Interval | None:
        """A column's mean over the pictures that have it, with its 95 % bootstrap interval."""
        known = [v for line in self.lines if (v := line.values.get(column)) is not None]
        if not known:
            return None
        return bootstrap_pairs(known) if column == "diversity" else bootstrap(known)

    @property
    def sorted(self) -> list[Line]:
        """The pictures by score, the best first; without a score as they came."""

        def key(line: Line) -> float:
            score = line.values.get("score")
            return -1.0 if score is None else score

        return sorted(self.lines, key=key, reverse=True)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    groups: of pictures. real: the references, each by the others. missing: what there was not, and
    the columns left out for it. warnings: of the references. embedder: the face embedder's name;
    of_the_loss: whether the identity loss used it. own: the photos' leave-one-out cosine and its
    standard deviation. style_own: the portraits'. tone: of the person's skin, in degrees.
    """

    groups: tuple[Group, ...]
    real: tuple[Group, ...]
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    embedder: str | None = None
    of_the_loss: bool | None = None
    own: tuple[float, float] | None = None
    style_own: float | None = None
    tone: float | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that any picture has, in the order of tables."""
        lines = [line for group in self.groups for line in group.lines]
        return [c for c in COLUMNS if any(line.values.get(c) is not None for line in lines)]

    @property
    def bad(self) -> list[str]:
        """A sentence on each picture that could not be read, or has no face or several."""
        several = self.own is not None
        return [text for group in self.groups for text in _bad(group, several)]

    @property
    def measured_by(self) -> str:
        """The face recognition model, and whether it may be trusted."""
        if self.embedder is None:
            return ""
        return f"Face recognition model: {self.embedder}{OF_THE_LOSS[self.of_the_loss]}"

    def bands(self) -> list[Group]:
        """The pictures of each group by band of skin tone, where it was read."""
        found = []
        for group in self.groups:
            names = dict.fromkeys(line.band for line in group.lines if line.band)
            for name in names:
                own = tuple(
                    replace(line, values={**line.values, "diversity": None})  # of the whole group
                    for line in group.lines
                    if line.band == name
                )
                found.append(Group(f"{group.name}: {name}", own))
        return found

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as JSON-ready data, without pictures."""
        return {
            "schema": SCHEMA,
            "columns": {c: f"{COLUMNS[c].heading}: {COLUMNS[c].help}" for c in self.columns},
            "missing": self.missing,
            "warnings": self.warnings,
            "face_model": self.embedder,
            "face_model_of_the_loss": self.of_the_loss,
            "person_own": self.own and self.own[0],
            "person_own_spread": self.own and self.own[1],
            "style_own": self.style_own,
            "person_tone": self.tone,
            "means": {group.name: _means(group, self.columns) for group in self.groups},
            "real": {group.name: _means(group, self.columns) for group in self.real},
            "by_skin_tone": {group.name: _means(group, self.columns) for group in self.bands()},
            "pictures": [
                {"group": group.name, "name": line.name, "faces_found": line.faces,
                 "notes": line.notes, **_rounded(line.values)}
                for group in self.groups for line in group.lines
            ],
            "lost": {group.name: group.lost for group in self.groups if group.lost},
        }  # fmt: skip

    def __str__(self) -> str:
        lines = []
        for group in (*self.groups, *self.real):
            told = [
                f"{COLUMNS[c].title or c.replace('_', ' ')} {found.mean:.2f} "
                f"[{found.low:.2f}, {found.high:.2f}]"
                for c in self.columns
                if (found := group.mean(c)) is not None
            ]
            number = len(group.lines)
            pictures = f"{number} picture" + "s" * (number != 1)
            lines.append(f"{group.name} ({pictures}): {', '.join(told)}")
        if self.own is not None:
            lines.append(f"The person's own: cosine {self.own[0]:.2f} ± {self.own[1]:.2f}.")
        lines += filter(None, [self.measured_by])
        lines += [f"Left out: {text}" for text in self.missing]
        return "\n".join([*lines, *self.warnings, *_shortened(self.bad)])


def write_csv(evaluation: Evaluation, file: Path) -> None:
    """Write a line for each picture; raises StorageError."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            columns = evaluation.columns
            writer.writerow(["group", "picture", *columns, "faces_found", "notes"])
            for group in evaluation.groups:
                for line in group.lines:
                    values = _rounded(line.values)
                    cells = ["" if (v := values.get(c)) is None else v for c in columns]
                    notes = "; ".join(line.notes)
                    writer.writerow(
                        [_cell(group.name), _cell(line.name), *cells, line.faces, notes]
                    )

    atomic_write(file, write)


def _cell(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _means(group: Group, columns: Sequence[str]) -> dict[str, Any]:
    found = {c: group.mean(c) for c in columns}
    return {c: None if f is None else [round(v, 4) for v in f] for c, f in found.items()}


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if v is None else round(v, 4) for name, v in values.items()}


def _bad(group: Group, compared: bool) -> Iterator[str]:
    where = f"{group.name}, "
    yield from (f"{where}{text}" for text in group.lost)
    chosen = "the one most like the person" if compared else "the largest"
    for line in group.lines:
        if not line.faces:
            yield f"{where}{line.name}: no face is found" + ("; identity 0." if compared else ".")
        elif line.faces > 1:
            yield f"{where}{line.name}: {line.faces} faces; {chosen} is measured."


def _shortened(texts: Sequence[str], most: int = 20) -> list[str]:
    more = len(texts) - most
    return [*texts[:most], f"... and {more} more pictures."] if more > 0 else [*texts]
