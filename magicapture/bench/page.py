"""The report as one web page: tables, what they mean, and the pictures; nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_write
from ..html import interval, jpeg, picture, table, write_html
from ..images import resize
from .columns import COLUMNS, Column, difference, means
from .report import Report

SIDE = 176
"""Pixels a side of the page's pictures."""

_PRIVACY = (
    "The JSON file beside this page holds figures, hashes and the names of programs and of the "
    "device: no picture, no folder's name, no path. Folders are numbered in the order of their "
    "names. {pictures}"
)
_WITH = "This page shows photos and drawn pictures: share it only if you may share those."
_WITHOUT = "This page holds no picture either."


def write_page(report: Report, file: Path, pictures: Path | None) -> None:
    """Write the page of a report; raises StorageError.

    pictures: the folder that `save_strip` filled; None for a page without pictures.
    """
    write_html(file, "MagiCapture bench", _parts(report, pictures))


def save_strip(images: Sequence[Tensor], file: Path) -> None:
    """Write pictures (3,H,W) side by side as a small JPEG; raises StorageError."""
    strip = torch.cat([resize(image, (SIDE, SIDE)).clamp(0, 1) for image in images], dim=-1)
    atomic_write(file, lambda path: path.write_bytes(jpeg(strip)))


def _parts(report: Report, pictures: Path | None) -> Iterable[str]:
    setup = report.setup
    yield f"<h1>MagiCapture bench</h1><p>{_told_setup(setup)}</p>"
    yield f"<p>{escape(_counted(report))}</p>"
    told = [column for column in COLUMNS if column.metric.place != "file"]
    costs = [column for column in COLUMNS if column.metric.place == "file"]
    yield "<h2>Scores</h2>" + _means(report, told, _references(report, told))
    first, *others = report.recipes
    if others:
        yield f"<h2>{escape(first)} less the others, person by person</h2>"
        yield table(
            ["", *(column.metric.heading for column in _known(report, told))],
            [
                [
                    f"less {other}",
                    *(
                        interval(difference(report.of(first), report.of(other), column), "+")
                        for column in _known(report, told)
                    ),
                ]
                for other in others
            ],
        )
    yield "<h2>Time and memory</h2>" + _means(report, costs, [])
    yield "<h2>What the columns say</h2><dl>"
    for column in _known(report, told + costs):
        yield f"<dt>{escape(column.metric.heading)}</dt><dd>{escape(column.metric.help)}</dd>"
    yield "</dl>"
    yield "<h2>Privacy</h2><p>" + _PRIVACY.format(pictures=_WITH if pictures else _WITHOUT) + "</p>"
    if pictures is not None:
        yield from _pictures(report, pictures)
    for title, data in (("Setup", setup), ("Recipes", report.recipes)):
        shown = escape(json.dumps(data, indent=1, ensure_ascii=False))
        yield f"<details><summary>{title}</summary><pre>{shown}</pre></details>"


def _told_setup(setup: Mapping[str, Any]) -> str:
    machine, base, faces = setup["machine"], setup["base"], setup["faces"]
    title = base["title"] or "a base model"
    sha = f", sha256 {base['sha256'][:16]}" if base["sha256"] else ""
    loss = faces["loss"]["name"] if faces["loss"] else "none"
    return escape(
        f"{title} ({base['family']}{sha}) on {machine['device']} in {setup['precision']}; "
        f"MagiCapture {machine['magicapture']}, torch {machine['packages']['torch']}. "
        f"Identity loss by {loss}; scores by {faces['judge']['name']}."
    )


def _counted(report: Report) -> str:
    people = {line["person"] for line in report.lines}
    done = [line for line in report.lines if "failed" not in line]
    failed = [f"{x['recipe']} ({x['failed']})" for x in report.lines if "failed" in x]
    text = (
        f"{len(done)} trainings, {len(people)} people. Means over people, with 95 % bootstrap "
        "intervals over people"
        + (": with so few, no more than a hint." if len(people) < 5 else ".")
    )
    return text + (f" Failed: {', '.join(failed)}." if failed else "")


def _known(report: Report, columns: Sequence[Column]) -> list[Column]:
    """The columns that any line has."""
    return [c for c in columns if any(c.value(line) is not None for line in report.lines)]


def _means(report: Report, columns: Sequence[Column], more: list[list[str]]) -> str:
    known = _known(report, columns)
    rows = [
        [recipe, *(interval(means(report.of(recipe), column)) for column in known)]
        for recipe in report.recipes
    ]
    if not known:
        return "<p>Nothing yet.</p>"
    more = [[*row, *[""] * len(known)][: len(known) + 1] for row in more]
    return table(["recipe", *(column.metric.heading for column in known)], rows + more)


def _references(report: Report, columns: Sequence[Column]) -> list[list[str]]:
    """Rows of real pictures: those held out, the ceiling, and those of others, the floor."""
    rows = []
    for name, title in (
        ("held out", "held-out photos; held-out portraits"),
        ("without it", "other people; other styles"),
    ):
        cells = []
        for column in _known(report, columns):
            values = [pair["references"][name].get(column.metric.name) for pair in report.pairs]
            known = [value for value in values if value is not None]
            cells.append(f"{sum(known) / len(known):.2f}" if known else "")
        rows.append([title, *cells])
    return rows


def _pictures(report: Report, folder: Path) -> Iterable[str]:
    yield "<h2>Pictures</h2><p>Of each training: four pictures, then one of each edit.</p>"
    for pair in report.pairs:
        person, style = pair["person"], pair["style"]
        yield f"<h3>Person {person}, style {style}</h3>"
        yield _strip(folder / f"{person}-{style}.jpg", "photos and portraits trained on")
        for line in report.lines:
            if (line["person"], line["style"]) == (person, style):
                title = f"{line['recipe']}, seed {line['seed']}"
                yield _strip(folder / f"{line['version']}.jpg", title)


def _strip(file: Path, title: str) -> str:
    try:
        data = file.read_bytes()
    except OSError:  # of a line that was made without pictures
        return ""
    return f"<small>{escape(title)}</small>" + picture(data, title)
