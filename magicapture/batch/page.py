"""The summary of a batch as one web page: every job with its picture, scores and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..html import picture, table, write_html
from .record import PICTURE, Outcome, Record
from .store import Store

PAGE = "index.html"

_STYLE = """.pictures{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;width:11rem;
font-size:13px}figure img{margin:0 0 .2rem}.wide{overflow-x:auto}.note{color:#b00}
body{max-width:96rem}"""

_TOLD: dict[Outcome, str] = {
    "finished": "finished",
    "refused": "refused before training",
    "failed": "given up",
}


def write_summary(store: Store, records: Sequence[Record], jobs: int) -> None:
    """Write the page of a batch of so many jobs beside their results; raises StorageError."""
    with store.opened("") as place:
        write_html(place.near / PAGE, "MagiCapture batch", _parts(store, records, jobs), _STYLE)
        place.send()


def counts(records: Sequence[Record], jobs: int) -> str:
    """How many jobs ended how, in a line."""
    told = [
        f"{number} {text}"
        for outcome, text in _TOLD.items()
        if (number := sum(record.outcome == outcome for record in records))
    ]
    if len(records) < jobs:
        told.append(f"{jobs - len(records)} not run yet")
    return f"{jobs} job{'s' * (jobs != 1)}: {', '.join(told)}."


def rows(records: Sequence[Record]) -> list[list[str]]:
    """A line a job: name, outcome, steps, tries, the steps it went on from, seconds by part."""
    return [
        [
            record.name,
            _TOLD[record.outcome],
            _steps(record),
            str(record.tries),
            ", ".join(map(str, record.resumed)),
            *(
                f"{record.seconds[part]:.1f}" if part in record.seconds else ""
                for part in _parts_of(records)
            ),
            record.worker,
        ]
        for record in records
    ]


def _steps(record: Record) -> str:
    """How many, and which of them is the result where checkpoints are kept."""
    return f"{record.chosen} of {record.steps}" if record.chosen else str(record.steps or "")


def head(records: Sequence[Record]) -> list[str]:
    """The headings of `rows`."""
    seconds = [f"{part} s" for part in _parts_of(records)]
    return ["job", "outcome", "steps", "tries", "went on after step", *seconds, "worker"]


def _parts_of(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(part for record in records for part in record.seconds))


def _parts(store: Store, records: Sequence[Record], jobs: int) -> Iterable[str]:
    yield f"<h1>MagiCapture batch</h1><p>{escape(counts(records, jobs))}</p>"
    if lost := [record for record in records if record.outcome != "finished"]:
        yield "<h2>What did not work</h2>"
        told = [[r.name, str(r.line), _TOLD[r.outcome], str(r.tries), r.reason] for r in lost]
        yield f'<div class="wide">{table(["job", "line", "", "tries", "reason"], told)}</div>'
    yield f'<h2>Jobs</h2><div class="wide">{table(head(records), rows(records))}</div>'
    yield '<h2>Pictures</h2><div class="pictures">'
    for record in records:
        if record.outcome == "finished":
            yield _figure(store, record)
    yield "</div>"
    yield (
        "<p><small>Losses are means over the last tenth of the steps. Leakage is the share of a "
        "token's attention outside its region, in one of the portraits. Neither compares faces: "
        "the scores of checkpoints and magicapture evaluate do. '300 of 400' steps: the "
        "checkpoint of step 300 is the result. This page shows drawn pictures of people: share it "
        "only if you may share those.</small></p>"
    )


def _figure(store: Store, record: Record) -> str:
    data = store.read(f"{record.name}/{PICTURE}") if PICTURE in record.files else None
    told = [f"{name} {value:.2f}" for name, value in record.scores.items()]
    below = [
        f"<b>{escape(record.name)}</b>{f', step {_steps(record)}' if record.chosen else ''}",
        f"<small>{escape(', '.join(told))}</small>",
        *(f'<span class="note">{escape(warning)}</span>' for warning in record.warnings),
    ]
    shown = picture(data, record.name) if data else ""
    return f"<figure>{shown}<figcaption>{'<br>'.join(below)}</figcaption></figure>"
