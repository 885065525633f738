"""The labels' benchmark on drawn faces, and the drawn photos that its sheet is of."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from magicapture import load_folder
from magicapture.config import LabelSettings
from magicapture.labels import labelled
from magicapture.paperdoll.pairs import make_pair, references
from magicapture.paperdoll.weights import load_reader


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(repo / "benchmarks"))
    try:
        import doll_photos
        import labels

        yield SimpleNamespace(labels=labels, photos=doll_photos)
    finally:
        sys.path.remove(str(repo / "benchmarks"))


@pytest.fixture(scope="module")
def measured(bench) -> SimpleNamespace:
    """A pair's labels of its first two photos, and a judge that knows all five."""
    pair = make_pair(1_000_007, 1_000_042, poses=1)
    person, portraits = references(pair.source), references(pair.reference)
    embedder = load_reader("identity_score")
    judge = bench.labels.Judge("judge", embedder, bench.labels.embedded(embedder, person.photos))
    made = labelled(portraits, person.only([0, 1]), LabelSettings(nearness=0.08))
    lines = list(bench.labels.lines_of("default", made, [judge]))
    return SimpleNamespace(made=made, judge=judge, lines=lines, person=person)


def test_a_score_is_against_all_photos_but_the_one_laid_in(measured) -> None:
    unit = F.normalize(measured.judge.photos, dim=1)
    cosines = unit @ unit.T
    label, line = next(
        (label, line)
        for label, line in zip(measured.made.labels, measured.lines, strict=True)
        if line["laid_in"]
    )
    number = label.match.photo
    others = [i for i in range(5) if i != number]
    own = sum(cosines[i, j] for i in others for j in others if i != j) / 12
    ceiling = cosines[number, others].mean() / own
    assert line["own"] == pytest.approx(float(ceiling), abs=1e-5)
    assert line["stranger"] < line["identity"] <= line["own"] + 0.1


def test_labels_show_the_person_and_plain_ones_have_no_scores(measured) -> None:
    shown = [line for line in measured.lines if line["laid_in"]]
    assert len(shown) > 0 and all(line["identity"] > line["portrait"] for line in shown)
    plain = [line for line in measured.lines if not line["laid_in"]]
    assert plain and not any("seam" in line or "model" in line for line in plain)


def test_the_table_counts_labels_and_portraits(bench, measured, tmp_path: Path) -> None:
    lines = [*measured.lines[:2], {**measured.lines[0], "form": "other"}]
    (head, _, *rows, aim) = bench.labels.table(measured.lines, [measured.judge]).splitlines()
    shown = [line for line in measured.lines if line["laid_in"]]
    assert head.startswith("| photos | model |") and "at most 1.1" in aim
    portraits = len({line["portrait_file"] for line in shown})
    assert len(rows) == 1 and f"| {len(shown)}; {portraits} of 5 |" in rows[0]
    bench.labels.write(lines, tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="") as opened:
        assert [line["form"] for line in csv.DictReader(opened)] == ["default", "default", "other"]


def test_texture_is_that_of_the_taught_face_alone(bench, measured) -> None:
    label = next(label for label in measured.made.labels if label.laid_in)
    face, taught = label.shown.face_mask > 0.5, label.shown.taught > 0.5
    flat = label.shown.image.where(~(face & taught), torch.tensor(0.5))
    changed = bench.labels.Label(
        label.portrait, label.photo, label.match, replace(label.shown, image=flat)
    )
    assert bench.labels.texture(changed) < bench.labels.texture(label)


def test_without_photos_it_says_why_it_skips(bench, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["labels.py", "--person", str(tmp_path / "nobody")])
    bench.labels.main()
    assert capsys.readouterr().out.startswith("Skipped: there are no photos at")


def test_the_drawn_photos_have_their_masks_and_landmarks(bench, monkeypatch, tmp_path) -> None:
    words = ["doll_photos.py", str(tmp_path), "--photos", "2", "--portraits", "3", "--size", "64"]
    monkeypatch.setattr(sys, "argv", words)
    bench.photos.main()
    for name, count in (("person", 2), ("style", 3)):
        drawn = load_folder(tmp_path / name)
        assert len(drawn) == count and {photo.size for photo in drawn} == {(64, 64)}
        assert all(p.face_mask is not None and p.landmarks is not None for p in drawn)
