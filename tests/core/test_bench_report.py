"""The report's figures in closed form, and the files that it does not go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magicapture.bench import Report
from magicapture.bench.columns import COLUMNS, difference, means, of_people
from magicapture.bench.page import write_page
from magicapture.errors import InputError

BY_NAME = {column.metric.name: column for column in COLUMNS}
SETUP: dict[str, Any] = {
    "machine": {"device": "<b>GPU</b>", "magicapture": "0", "packages": {"torch": "2"}},
    "precision": "bf16",
    "base": {"title": "", "family": "sd1", "sha256": None},
    "faces": {"loss": None, "judge": {"name": "a"}},
}


def line(person: int, recipe: str, identity: list[float], **more: Any) -> dict[str, Any]:
    scores = {"identity": identity}
    told = {"person": person, "style": 1, "recipe": recipe, "seed": 0, "version": "a1"}
    return {**told, "scores": scores, "cost": {"step_seconds": 2.0}, "edits": [], **more}


LINES = [
    line(1, "ours", [1.0, 0.5]),
    line(1, "ours", [0.25], seed=1),
    line(2, "ours", [0.0]),
    {**line(3, "ours", []), "failed": "NumericalError"},
    line(1, "theirs", [0.2]),
    line(4, "theirs", [0.9]),
]


def of(recipe: str) -> list[dict[str, Any]]:
    return [one for one in LINES if one["recipe"] == recipe]


def test_a_person_counts_once_however_many_lines() -> None:
    column = BY_NAME["identity"]
    assert of_people(of("ours"), column) == {1: (0.75 + 0.25) / 2, 2: 0.0}
    found = means(of("ours"), column)
    assert found is not None and (found.mean, found.low, found.high) == (0.25, 0.0, 0.5)
    apart = difference(of("ours"), of("theirs"), column)
    assert apart is not None and apart.mean == pytest.approx(0.3), "person 1 alone has both"
    assert means(of("ours"), BY_NAME["obedience"]) is None


def test_edits_are_averaged_and_unknown_ones_left_out() -> None:
    edits = [
        {"words": "a", "scores": {"identity": [0.5, 0.7]}, "obedience": 0.5},
        {"words": "b", "scores": {"identity": [0.2]}, "obedience": None},
    ]
    one = line(1, "ours", [1.0], edits=edits)
    assert BY_NAME["identity_edited"].value(one) == pytest.approx(0.4)
    assert BY_NAME["obedience"].value(one) == 0.5


def test_a_report_replaces_a_line_and_reads_what_it_wrote(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    made = Report(file, SETUP, {"ours": {}}, [{"person": 1, "style": 1}])
    made.add({**line(1, "ours", []), "failed": "OutOfMemoryError"})
    made.add(line(1, "ours", [0.5]))
    again = Report(file, SETUP, {"theirs": {}}, [])
    assert again.lines == made.lines == [line(1, "ours", [0.5])]
    assert list(again.recipes) == ["ours", "theirs"] and len(again.pairs) == 1
    with pytest.raises(InputError, match="with another precision; give the same as then"):
        Report(file, {**SETUP, "precision": "fp32"}, {"ours": {}}, [])
    fresh = Report(file, {**SETUP, "precision": "fp32"}, {"ours": {}}, [], fresh=True)
    fresh.write()
    assert json.loads(file.read_text("utf-8"))["lines"] == []
    assert len(json.loads((tmp_path / "report.json.bak1").read_text("utf-8"))["lines"]) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "a report of form 2; this version writes form 1"),
        ({"lines": [{"person": 1}]}, "is damaged"),
        ({"lines": [line(1, "ours", [], version="../../secret")]}, "is damaged"),
        ({"lines": {}}, "is damaged"),
        ({"pairs": [{"person": "../1", "style": 1}]}, "is damaged"),
        ({"made_by": "somebody"}, "is no report"),
    ],
)
def test_a_report_that_is_none_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    made = Report(file, SETUP, {"ours": {}}, [])
    file.write_text(json.dumps({**made.as_dict(), **changes}))
    with pytest.raises(InputError, match=said):
        Report(file, SETUP, {"ours": {}}, [])


def test_a_page_of_failures_alone_shows_them_and_escapes_names(tmp_path: Path) -> None:
    made = Report(tmp_path / "report.json", SETUP, {"<i>x</i>": {}}, [])
    made.add({**line(1, "<i>x</i>", []), "failed": "OutOfMemoryError"})
    write_page(made, tmp_path / "page.html", None)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "Failed: &lt;i&gt;x&lt;/i&gt; (OutOfMemoryError)." in page
    assert "<b>" not in page and "<i>" not in page
