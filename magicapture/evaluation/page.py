"""An evaluation as one web page: tables, what they mean, and the pictures, the best first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ..html import interval, picture, table, write_html
from .columns import COLUMNS
from .report import Evaluation, Group, Line

_STYLE = """.groups{display:flex;gap:2rem;align-items:flex-start}.group{flex:1;min-width:0}
.pictures{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;width:10rem;font-size:13px}
figure img{margin:0 0 .2rem}figcaption b{font-size:15px}.note{color:#b00}
body{max-width:96rem}.wide{overflow-x:auto}.wide td{white-space:nowrap}"""

_CAPTION = ("identity", "style", "aesthetic", "obedience")
_INTERVALS = (
    "Means over pictures, with 95 % bootstrap intervals over pictures (Efron 1979): they tell what "
    "other pictures of the same training would give, not other trainings or other people. The rows "
    "of real pictures are each measured by the others of its own set."
)


def write_page(evaluation: Evaluation, file: Path) -> None:
    """Write the page of an evaluation; raises StorageError."""
    write_html(file, "MagiCapture evaluation", _parts(evaluation), _STYLE)


def _parts(evaluation: Evaluation) -> Iterable[str]:
    columns = evaluation.columns
    yield f"<h1>MagiCapture evaluation</h1><p>{escape(_INTERVALS)}</p>"
    yield _table([*evaluation.groups, *evaluation.real], columns)
    if bands := evaluation.bands():
        yield "<h2>By skin tone, as it is in the picture</h2>" + _table(bands, columns)
    for text in filter(None, [evaluation.measured_by]):
        yield f"<p>{escape(text)}</p>"
    yield from _listed("Left out", evaluation.missing)
    yield from _listed("The references", evaluation.warnings)
    yield from _listed("Pictures to look at", evaluation.bad)
    yield '<h2>Pictures, by score</h2><div class="groups">'
    for group in evaluation.groups:
        yield f'<div class="group"><h3>{escape(group.name)}</h3><div class="pictures">'
        yield from map(_figure, group.sorted)
        yield "</div></div>"
    yield "</div>"
    for group in evaluation.real:
        yield f'<h3>{escape(group.name.capitalize())}</h3><div class="pictures">'
        yield from map(_figure, group.lines)
        yield "</div>"
    yield "<h2>What the columns say</h2><dl>"
    for column in columns:
        metric = COLUMNS[column]
        yield f"<dt>{escape(metric.heading)}</dt><dd>{escape(metric.help)}</dd>"
    yield "</dl>"


def _table(groups: Sequence[Group], columns: Sequence[str]) -> str:
    head = ["", "pictures", *(COLUMNS[column].heading for column in columns)]
    rows = [
        [group.name, str(len(group.lines)), *(interval(group.mean(column)) for column in columns)]
        for group in groups
    ]
    return f'<div class="wide">{table(head, rows)}</div>'


def _listed(title: str, texts: Sequence[str]) -> Iterable[str]:
    if texts:
        items = "".join(f"<li>{escape(text)}</li>" for text in texts)
        yield f"<h2>{escape(title)}</h2><ul>{items}</ul>"


def _figure(line: Line) -> str:
    score = line.values.get("score")
    told = [
        f"{COLUMNS[name].heading} {value:.2f}"
        for name in _CAPTION
        if (value := line.values.get(name)) is not None
    ]
    below = [
        (f"<b>{score:.2f}</b> " if score is not None else "") + escape(line.name),
        *([f"<small>{escape(', '.join(told))}</small>"] if told else []),
        *(f'<span class="note">{escape(note)}</span>' for note in line.notes),
    ]
    shown = picture(line.thumbnail, line.name)
    return f"<figure>{shown}<figcaption>{'<br>'.join(below)}</figcaption></figure>"
