"""The file of a batch: what a job says, and what is said of a line that cannot be used."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from magicapture.batch import Job, read_jobs
from magicapture.cli.batch_jobs import (
    BATCHS_OWN,
    CONTENT,
    IN_THE_RECIPE,
    LATER_CONTENT,
    LATER_SETTINGS,
    NO_MATTER,
    SETTINGS,
    JobReader,
    TrainParser,
)
from magicapture.errors import InputError, StorageError

from .conftest import Write


def read(file: Path) -> list[Job]:
    return read_jobs(file, JobReader(file.parent))


def arguments(job: Job) -> argparse.Namespace:
    return TrainParser().read(job)


def test_a_job_is_what_train_would_be_given(write_jobs: Write, tmp_path: Path) -> None:
    first = {"out": "people/ada", "seed": 7, "subject-name": "ada-1", "set": {"lora.rank": 8}}
    second = {"out": "eve", "set": ["variants=2", "lora.rank=4"], "leave_out": True}
    one, two = read(write_jobs(first, second, steps=6))
    assert (one.name, two.name) == ("people/ada", "eve")
    assert two.line == one.line + 1 == 12
    given = arguments(one)
    assert (given.seed, given.steps, given.subject_name, given.set) == (
        7,
        6,
        "ada-1",
        ["lora.rank=8"],
    )
    assert given.source == str(tmp_path / "photos" / "person") and given.face_model == "none"
    assert arguments(two).leave_out and arguments(two).set == ["variants=2", "lora.rank=4"]


def test_fit_may_have_a_number_or_none(write_jobs: Write) -> None:
    jobs = read(write_jobs(*({"out": name, "fit": v} for name, v in (("a", True), ("b", 7.5)))))
    assert [arguments(job).fit for job in jobs] == [0.0, 7.5]
    assert arguments(read(write_jobs({"out": "c", "fit": False}, fit=True))[0]).fit is None


def test_a_plain_list_will_do(write_jobs: Write) -> None:
    file = write_jobs()
    text = file.read_text().partition("jobs:")[0].removeprefix("defaults:\n")
    lines = text.strip().splitlines()
    file.write_text("\n".join([f"- {lines[0].strip()}", *lines[1:], "  out: ada"]) + "\n")
    (job,) = read(file)
    assert job.name == "ada" and job.line == 1


def test_every_bad_line_is_named_before_anything_runs(write_jobs: Write) -> None:
    file = write_jobs(
        {"out": "fine"},
        {"out": "a", "seed": "x"},
        {"out": "b", "person": "photos/nobody"},
        {"out": "c", "persn": "photos/person"},
        {"out": "FINE"},
        {"out": "d", "save_memory": 1},
        {"out": "e", "recipe": "magic"},
        {"out": "f", "set": {"lora.rnk": 3}},
        {"out": "../g"},
        {"out": "h", "base": "nothing.safetensors"},
        {"out": "i", "device": "cuda:1"},
        {"seed": 1},
        {"out": "j", "seed": None},
        {"out": "k", "seed": [1, 2]},
        {"out": "n", "keep": 2, "take": 1},
        {"out": "o", "keep": 0},
        {"out": "p", "fit": -1},
        {"out": "q", "stop-early": "yes"},
    )
    with file.open("a") as opened:
        opened.write("  - 7\n  - {out: l, out: m}\n")
    with pytest.raises(InputError) as caught:
        read(file)
    head, *lines = str(caught.value).splitlines()
    assert head == "Nothing was run. 19 lines cannot be used:"
    expected = (
        "--seed: invalid int value: 'x'",
        "photos/nobody does not exist",
        'persn: there is no such setting; did you mean "person"?',
        "'FINE' is that of line 11 already",
        "save_memory: expected true or false, got 1",
        "There is no recipe 'magic'",
        'lora.rnk: there is no such setting; did you mean "rank"?',
        "output name '../g'",
        "nothing.safetensors does not exist",
        "device: there is no such setting",
        "out: missing",
        "seed: expected a value, got null",
        "seed: expected one value, got a list of 2",
        "--take: step 1 is not kept; expected one of 3, 4.",
        "--keep: expected 1 to 100, got 0",
        "--fit: expected at least 0",
        "stop_early: expected true or false",
        "expected a mapping",
        "out: given twice",
    )
    for number, (line, text) in enumerate(zip(lines, expected, strict=True), start=12):
        assert line.startswith(f"jobs.yaml, line {number}: ") and text in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jobs: [", "is no YAML"),
        ("jobs: []", "holds no job"),
        ("7", "expected a list of jobs"),
        ("jobs: []\nextra: 1", "extra: there is no such setting"),
        ("- {out: !!python/object:os.system x}", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=expected):
        read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read(tmp_path / "jobs.yaml")


def test_every_option_of_train_counts_or_is_said_not_to() -> None:
    named = {action.dest for action in TrainParser()._actions} - BATCHS_OWN
    counted = (*CONTENT, *SETTINGS, *IN_THE_RECIPE, *LATER_CONTENT, *LATER_SETTINGS, *NO_MATTER)
    assert named == {*counted} and len(counted) == len(named)


def test_the_fingerprint_is_of_settings_photos_and_base(write_jobs: Write, tmp_path: Path) -> None:
    def printed(**changes: object) -> str:
        (job,) = read(write_jobs({"out": "ada", **changes}))
        return job.fingerprint

    known = printed()
    assert printed(out="eve") == printed(save_memory=True) == printed(save_every=3) == known
    assert printed(recipe="magicapture", rank=2) == known
    given = [printed(keep=1), printed(keep=1, take=4), printed(fit=True), printed(fit=8)]
    assert len({known, *given}) == 5 and printed(anyway=True) == printed(fit=False) == known
    changed = {printed(seed=1), printed(rank=4), printed(set={"variants": 3}), known}
    assert len(changed) == 4

    photo, base = tmp_path / "photos/person/0.png", tmp_path / "base/vae/config.json"
    os.utime(photo, (0, 0))
    assert printed() == known, "a copied photo is the same photo"
    (tmp_path / "base" / "old.ckpt").write_bytes(b"what no one reads")
    assert printed() == known
    photo.with_name("0.mask.png").write_bytes(photo.with_name("1.mask.png").read_bytes())
    masked = printed()
    base.write_text(base.read_text() + "\n")
    assert len({known, masked, printed()}) == 3


def test_the_example_can_be_run(repo: Path, tmp_path: Path) -> None:
    for name in ("person", "style"):
        folder = tmp_path / "dolls" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
    (tmp_path / "magicapture").symlink_to(repo / "magicapture")
    (tmp_path / "examples").mkdir()
    file = shutil.copy(repo / "examples" / "jobs.yaml", tmp_path / "examples")
    assert [job.name for job in read(Path(file))] == ["first", "second", "release"]
