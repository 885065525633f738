"""The paperdoll benchmark's bookkeeping; what it trains is tested where it lives."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from magicapture.metrics import METRICS
from magicapture.paperdoll import Split, identity_from_seed, split_of
from magicapture.paperdoll.captions import TONES, tone_word, vocabulary
from magicapture.paperdoll.model import doll_backbone
from magicapture.paperdoll.pairs import make_pair


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which lie beside one another and not in a package."""
    sys.path.insert(0, str(repo / "benchmarks"))
    try:
        import paperdoll
        import paperdoll_photos
        import paperdoll_rows
        import paperdoll_run
        import paperdoll_table
        import study

        yield SimpleNamespace(
            main=paperdoll,
            photos=paperdoll_photos,
            rows=paperdoll_rows,
            run=paperdoll_run,
            table=paperdoll_table,
            study=study,
        )
    finally:
        sys.path.remove(str(repo / "benchmarks"))


def test_pairs_stay_in_their_split_and_bands_of_skin_tone_take_turns(bench) -> None:
    for split in (Split.DEVELOPMENT, Split.TEST):
        seeds = [bench.run.pair_seeds(split, i) for i in range(21)]
        assert {split_of(seed) for pair in seeds for seed in pair} == {split}
        assert len({seed for pair in seeds for seed in pair}) == 42
        tones = [tone_word(identity_from_seed(identity)) for identity, _ in seeds]
        assert [tones.count(tone) for tone in TONES] == [7, 7, 7]


def test_rows_have_names_of_their_own_and_differ_in_what_they_say(bench) -> None:
    for rows in (bench.rows.rows(), *bench.rows.studies().values()):
        assert len({row.name for row in rows}) == len(rows)
    rows = {row.name: row for row in bench.rows.rows()}
    assert not rows["without refocusing"].recipe.uses("attention")
    assert rows["magicapture"].recipe.uses("attention")
    assert not rows["without identity loss"].recipe.uses("identity")
    assert not rows["without composed prompts"].recipe.uses("composed")
    assert rows["one phase"].recipe.steps == rows["magicapture"].recipe.steps
    assert rows["magicapture, second seed"].recipe == rows["magicapture"].recipe
    assert not any(phase.rates.tokens for phase in rows["dreambooth"].recipe.phases)
    assert rows["dreambooth"].start == "random"
    assert rows[bench.rows.MAGICFACE].recipe is None


def test_the_row_of_phrases_says_what_no_caption_does(bench) -> None:
    """Its pieces are what pretraining has not touched, and the two have none in common."""
    (row,) = (row for row in bench.rows.studies()["phrases"] if row.phrases)
    assert [concept.vectors for concept in row.concepts()] == [0, 0]
    words = [concept.spelled.words for concept in row.concepts()]
    backbone = doll_backbone()
    said = {i for word in vocabulary() for i in backbone.word_ids("clip_l", word)}
    zed, kiv = ({*backbone.word_ids("clip_l", word)} for word in words)
    assert zed and kiv and not zed & kiv and not (zed | kiv) & said
    norms = backbone.text_encoders["clip_l"].get_input_embeddings().weight.norm(dim=1)
    assert norms[[*zed, *kiv]].max() < 0.25 < 1 < norms[sorted(said)].median()


def test_a_line_of_other_settings_has_another_version(bench, tmp_path: Path) -> None:
    (tmp_path / "unet.safetensors").write_bytes(b"one")
    plan = bench.run.Plan(tmp_path, Split.TEST, tmp_path)
    row = bench.rows.rows()[7]
    version = plan.version(row)
    assert version == plan.version(row)
    others = [
        plan.version(replace(row, seed=5)),
        plan.version(replace(row, phrases=("zed", "kiv"))),
        plan.version(replace(row, recipe=replace(row.recipe, masked=False))),
        replace(plan, quick=True).version(row),
        replace(plan, in_words=True).version(row),
        replace(plan, hard="fringe").version(row),
    ]
    (tmp_path / "unet.safetensors").write_bytes(b"two")
    others.append(plan.version(row))
    assert version not in others and len(set(others)) == 7


def test_a_row_without_training_has_a_version_by_what_it_draws_with(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = bench.run.Plan(tmp_path, Split.TEST, tmp_path)
    row = bench.rows.Row(bench.rows.MAGICFACE)
    version = plan.version(row)
    monkeypatch.setattr(bench.run, "WEIGHT", 3.0)
    assert version != plan.version(row)


def line(row: str, pair: int, tone: str = "tan", **figures: float) -> dict[str, object]:
    return {"row": row, "pair": pair, "tone": tone, "version": "v", **figures}


def test_the_file_gives_back_the_newest_line_of_each(bench, tmp_path: Path) -> None:
    file = tmp_path / "lines.csv"
    assert bench.study.read(file) == {}
    for value in (0.1, 0.2):
        bench.study.append(file, [line("a", 0, both=value)])
    bench.study.append(file, [line("a", 1, both=0.3)])
    found = bench.study.read(file)
    assert {key: known["both"] for key, known in found.items()} == {
        ("a", 0): "0.2",
        ("a", 1): "0.3",
    }


def test_a_file_without_a_column_gets_it_and_keeps_its_lines(bench, tmp_path: Path) -> None:
    file = tmp_path / "lines.csv"
    bench.study.append(file, [line("a", 0, both=0.1, gone=0.7)])
    for pair in (1, 2):
        bench.study.append(file, [line("a", pair, new=0.2, both=0.3)])
    found = bench.study.read(file)
    assert found["a", 0]["gone"] == "0.7" and found["a", 0]["new"] == ""
    assert [found["a", pair][name] for pair in (1, 2) for name in ("both", "new")] == [
        *("0.3", "0.2", "0.3", "0.2")
    ]
    assert list(tmp_path.iterdir()) == [file]


WORK = """
import os
import signal
from pathlib import Path

from magicapture.errors import NumericalError


class Work:
    def __init__(self, plan):
        pass

    def __call__(self, item):
        if item == 1:
            raise NumericalError("diverged")
        if item == 2 and not MARK.exists():
            MARK.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"row": "a", "pair": item, "both": 0.5}]
"""


def test_what_fails_does_not_stop_the_rest(
    bench, repo: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Nor does a process that is killed, whose item another one does."""
    # Modules that the other processes find too.
    (tmp_path / "failing_work.py").write_text(WORK.replace("MARK", f"Path({str(tmp_path)!r}, 'x')"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(map(str, (tmp_path, repo / "benchmarks", repo)))
    )
    from failing_work import Work

    file = tmp_path / "lines.csv"
    bench.study.carry_out(Work, None, [0, 1, 2], file, workers=1)
    assert sorted(bench.study.read(file)) == [("a", 0), ("a", 2)]
    assert "1 failed: diverged" in capsys.readouterr().out
    assert (tmp_path / "x").exists()


def test_differences_are_paired(bench) -> None:
    lines = [line("a", i, both=str(0.1 * i)) for i in range(5)]
    lines += [line("b", i, both=str(0.1 * i + 0.05), tone="dark") for i in range(4)]
    table = bench.table.Table(lines, ["b", "a", "absent"])
    assert table.order == ["b", "a"]
    change = table.change("b", "a", "both")
    assert change.low == pytest.approx(0.05) and change.high == pytest.approx(0.05)
    assert table.interval("a", "both", "dark") is None
    assert "+0.050 [+0.050, +0.050]" in table.differences("a")


def test_a_column_that_nothing_is_in_is_left_out(bench) -> None:
    lines = [line("a", 0, both="0.5"), line("b", 0, both="0.5", obeys_face="0.25")]
    heading = bench.table.Table(lines, ["a", "b"]).scores().splitlines()[0]
    assert heading == "| row | pairs | both | obeys, face |"


def test_tables_and_notes_are_the_metrics(bench) -> None:
    assert list(bench.table.COLUMNS.values()) == [
        *("identity", "style", "both", "distance to truth"),
        *("leakage of subject", "leakage of style", "collapse", "copies"),
        *("obeys, face", "obeys, scene", "obeys, expression"),
        *("obeys in words, face", "obeys in words, scene", "obeys in words, expression"),
        *("identity, scene edited", "style, face edited", "training, s"),
    ]
    notes = bench.table.NOTES
    for name in bench.table.COLUMNS:
        assert METRICS[name].help.split()[0] in notes and f"- {METRICS[name].heading}: " in notes
    assert all(len(line) <= 100 for line in notes.splitlines())


def test_published_files_have_every_metric(bench, repo: Path) -> None:
    with (repo / "docs/benchmarks/paperdoll.csv").open(newline="") as opened:
        columns = next(csv.reader(opened))
    assert set(METRICS) == set(columns) - {
        *("row", "pair", "version", "identity_seed", "style_seed", "tone"),
    }


def test_photos_of_other_numbers_are_a_part_of_each_other(bench) -> None:
    photos_of = bench.photos.photos_of
    pair = make_pair(1_000_000, 1_000_099)
    many = photos_of(pair, 1_000_000, 8)
    assert photos_of(pair, 1_000_000, 2) == many[:2] == pair.source[:2]
    assert len({doll.image.tobytes() for doll in many}) == 8


def test_a_faulty_mask_is_as_wrong_as_it_says(bench) -> None:
    faults, height = bench.photos.FAULTS, bench.photos.height
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:80, 50:80] = 1
    draw = torch.Generator().manual_seed(1)
    moved = faults["shifted"](mask, 8, draw)
    assert moved.sum() == mask.sum()
    middle = [torch.stack(torch.where(m[0] > 0)).float().mean(1) for m in (mask, moved)]
    assert (middle[1] - middle[0]).norm().item() == pytest.approx(8, abs=0.8)
    assert height(faults["grown"](mask, 4, draw)) == 48
    assert height(faults["shrunk"](mask, 4, draw)) == 32
    oval = faults["oval"](mask, 0, draw)
    assert oval.sum().item() == pytest.approx(torch.pi / 4 * 40 * 30, rel=0.03)
    assert torch.equal(oval * mask, oval), "the oval of a box lies inside it"

    pair = make_pair(1_000_000, 1_000_099, photos=2)
    true, wrong = (bench.photos.with_masks(pair.source, "grown", n, 7) for n in (0, 20))
    for photo, other, doll in zip(true, wrong, pair.source, strict=True):
        assert photo.face_mask is not None and other.face_mask is not None
        assert torch.equal(photo.face_mask, torch.from_numpy(doll.mask))
        assert height(other.face_mask) > 1.3 * height(photo.face_mask)
