"""The report as one web page: tables, what they mean, and the pictures; nothing is fetched."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_write
from ..images import resize, to_pil
from ..metrics import Interval
from .columns import COLUMNS, Column, difference, means
from .report import Report

SIDE = 176
"""Pixels a side of the page's pictures."""

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>MagiCapture bench</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;text-align:right}
th{border-bottom:1px solid #999;vertical-align:bottom}td:first-child,th:first-child{text-align:left}
small{color:#666}img{display:block;max-width:100%;margin:.2rem 0 .8rem}pre{overflow:auto}
dt{font-weight:600}
</style></head><body>
"""

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
    text = _HEAD + "\n".join(_parts(report, pictures)) + "\n</body></html>\n"
    atomic_write(file, lambda path: path.write_text(text, "utf-8"))


def save_strip(images: Sequence[Tensor], file: Path) -> None:
    """Write pictures (3,H,W) side by side as a small JPEG; raises StorageError."""
    strip = torch.cat([resize(image, (SIDE, SIDE)).clamp(0, 1) for image in images], dim=-1)
    buffer = io.BytesIO()
    to_pil(strip).save(buffer, format="JPEG", quality=88)
    atomic_write(file, lambda path: path.write_bytes(buffer.getvalue()))


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
        yield _table(
            ["", *(column.metric.heading for column in _known(report, told))],
            [
                [
                    f"less {other}",
                    *(
                        _interval(difference(report.of(first), report.of(other), column), "+")
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
        [recipe, *(_interval(means(report.of(recipe), column)) for column in known)]
        for recipe in report.recipes
    ]
    if not known:
        return "<p>Nothing yet.</p>"
    more = [[*row, *[""] * len(known)][: len(known) + 1] for row in more]
    return _table(["recipe", *(column.metric.heading for column in known)], rows + more)


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


def _interval(found: Interval | None, sign: str = "") -> str:
    if found is None:
        return ""
    digits = 0 if abs(found.mean) >= 100 else 2
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in found)
    return mean if low == high else f"{mean} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


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
        data = base64.b64encode(file.read_bytes()).decode("ascii")
    except OSError:  # of a line that was made without pictures
        return ""
    return (
        f"<small>{escape(title)}</small>"
        f'<img alt="{escape(title)}" src="data:image/jpeg;base64,{data}">'
    )
