"""A worker in this process: whole results, and what is left when it is killed half-way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from safetensors.torch import load_file

from magicapture.batch import PAGE, At, Job, Need, Store, Worker, read_jobs, rows
from magicapture.batch.page import write_summary
from magicapture.batch.record import read_record
from magicapture.cli import main
from magicapture.cli.batch_jobs import JobReader, TrainLoader
from magicapture.errors import InputError, StorageError
from magicapture.files import atomic_write

from .conftest import Write


class Killed(BaseException):
    """What ends a test's worker."""


def kill_at(step: int) -> Callable[[At], None]:
    def tell(at: At) -> None:
        if at.step == step:
            raise Killed

    return tell


def read(file: Path) -> list[Job]:
    return read_jobs(file, JobReader(file.parent))


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same tensors, bit for bit."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(v.equal(second[k]) for k, v in first.items())


@pytest.mark.parametrize("kind", ["{}/results", "memory:/{}/results"])
def test_a_job_that_was_killed_goes_on_and_ends_as_if_it_never_was(
    kind: str, write_jobs: Write, tmp_path: Path
) -> None:
    address = kind.format(tmp_path)
    (job,) = read(write_jobs({"out": "people/ada", "save_every": 1, "seed": 3}))
    store = Store(address)
    with pytest.raises(Killed):
        Worker(TrainLoader, address, kill_at(3), pictures=False).train(job, 1)
    assert read_record(store, job) is None and store.exists("people/ada/states")

    steps: list[int] = []
    worker = Worker(TrainLoader, address, lambda at: steps.append(at.step))
    record = worker.train(job, 2)
    assert (record.outcome, record.steps, record.tries) == ("finished", 4, 2)
    assert record.resumed == (steps[0] - 1,) and steps[-1] == 4 and steps[0] > 1
    assert record.seconds.keys() == {"load", "prepare", "train", "draw", "save"}
    assert record.scores["source loss"] > 0 and "leakage of my-person" in record.scores
    assert read_record(store, job) == record
    again = Worker(TrainLoader, address, kill_at(1)).train(job, 3)
    assert again.tries == 3 and again.files == record.files, "it was whole already"
    names = {"ada.safetensors", "embeddings/my-person.safetensors", "picture.jpg", "job.json"}
    results = copied(store, tmp_path) / "people/ada"
    found = {f.relative_to(results).as_posix() for f in files(results)}
    assert found == names | {"embeddings/my-style.safetensors"}, (
        "the states are gone, no rest is left"
    )

    assert main(["train", *job.words, "--device=cpu", f"--out-dir={tmp_path / 'alone'}"]) == 0
    alone = tmp_path / "alone" / "people"
    for name in ("ada.safetensors", "embeddings/my-person.safetensors"):
        assert same(results / name, alone / name)


def test_checkpoints_outlive_a_killed_worker_and_are_those_of_train(
    write_jobs: Write, tmp_path: Path
) -> None:
    """The step that is taken was kept before the kill, so that it comes from the store."""
    keep = {"keep-every": 2, "keep-seeds": 1, "choose": "last", "take": 2}
    (job,) = read(write_jobs({"out": "ada", "save_every": 1, **keep}, steps=3))
    store = Store(f"memory:/{tmp_path}/results")
    with pytest.raises(Killed):
        Worker(TrainLoader, store.address, kill_at(3)).train(job, 1)
    (left,) = {Path(file).parent.name for file in store._fs.find(store._at("")) if "kept" in file}
    assert store.exists(f"ada/states/{left}/0000002.json")

    record = Worker(TrainLoader, store.address).train(job, 2)
    assert (record.steps, record.chosen, record.resumed) == (3, 2, (3,))
    assert not any("missing" in warning for warning in record.warnings)
    assert {"source loss", "obedience", "leakage"} <= record.scores.keys()
    assert "2 of 3" in rows([record])[0]

    assert main(["train", *job.words, "--device=cpu", f"--out-dir={tmp_path / 'alone'}"]) == 0
    results, alone = copied(store, tmp_path) / "ada", tmp_path / "alone"
    for name in ("ada.safetensors", "embeddings/my-style.safetensors"):
        assert same(results / name, alone / name)
    for ending in ("json", "csv", "png"):
        name = f"ada-checkpoints.{ending}"
        assert name in record.files
        assert (results / name).read_bytes() == (alone / name).read_bytes()
    kept = sorted(alone.glob("states/*.kept/*.safetensors"))
    for step, file in zip((2, 3), kept, strict=True):
        assert same(results / f"checkpoints/ada-{step:06}.safetensors", file)
    assert not store.exists("ada/states")

    write_summary(Store(str(results)), [record], 1)
    assert "<b>ada</b>, step 2 of 3" in (results / PAGE).read_text()


def copied(store: Store, tmp_path: Path) -> Path:
    """The results as a folder."""
    store._fs.get(store._at(""), str(tmp_path / "copy"), recursive=True)
    return tmp_path / "copy"


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_models_are_loaded_once_and_left_as_they_were(write_jobs: Write, tmp_path: Path) -> None:
    first, second = read(write_jobs({"out": "ada"}, {"out": "eve", "seed": 1}))
    worker = Worker(TrainLoader, str(tmp_path / "results"), pictures=False)
    backbone = worker.loader.open(first)[0].backbone
    before = backbone.fingerprint()
    worker.train(first, 1)
    assert worker.loader.open(second)[0].backbone is backbone and backbone.fingerprint() == before
    record = worker.train(second, 1)
    assert record.files == (
        "eve.safetensors",
        "embeddings/my-person.safetensors",
        "embeddings/my-style.safetensors",
    )
    Worker(TrainLoader, str(tmp_path / "other"), pictures=False).train(second, 1)
    one, other = (tmp_path / place / "eve/eve.safetensors" for place in ("results", "other"))
    assert same(one, other), "a job leaves something to the next"


def test_photos_are_encoded_once_for_jobs_that_share_them(
    write_jobs: Write, tmp_path: Path
) -> None:
    """Another rank encodes nothing, another style its own pictures; the results are those alone."""
    shutil.copytree(tmp_path / "photos" / "style", tmp_path / "photos" / "other")
    for file in (tmp_path / "photos" / "other").glob("?.png"):
        ImageOps.invert(Image.open(file).convert("RGB")).save(file)
    changes = {"rank": 3}, {"style": "photos/other"}
    jobs = read(write_jobs({"out": "a"}, *({"out": f"{i}", **c} for i, c in enumerate(changes))))
    worker = Worker(TrainLoader, str(tmp_path / "results"), pictures=False)
    encoded = []
    for job in jobs:
        worker.train(job, 1)
        encoded.append(worker.loader.open(job)[0].backbone.latents.encoded)
    assert encoded == [3, 3, 5], "photos, portraits and pseudo-labels, then the last two again"
    for job in jobs[1:]:
        Worker(TrainLoader, str(tmp_path / "alone"), pictures=False).train(job, 1)
        for name in (f"{job.name}.safetensors", "embeddings/my-person.safetensors"):
            assert same(
                tmp_path / "results" / job.name / name, tmp_path / "alone" / job.name / name
            )


def test_a_finished_job_is_known_until_it_is_another(write_jobs: Write, tmp_path: Path) -> None:
    (job,) = read(write_jobs({"out": "ada"}))
    store = Store(str(tmp_path / "results"))
    Worker(TrainLoader, store.address, pictures=False).train(job, 1)
    assert read_record(store, job) is not None
    (changed,) = read(write_jobs({"out": "ada", "seed": 1}))
    assert read_record(store, changed) is None
    record = tmp_path / "results/ada/job.json"
    for text in ("", "[]", json.dumps({"name": "ada"})):
        kept = record.read_bytes()
        record.write_text(text)
        assert read_record(store, job) is None
        record.write_bytes(kept)
    (tmp_path / "results/ada/ada.safetensors").unlink()
    assert read_record(store, job) is None, "its result is gone"


def test_what_cannot_work_is_refused_before_the_base_model_is_read(
    write_jobs: Write, tmp_path: Path
) -> None:
    (job,) = read(write_jobs({"out": "ada"}))
    worker = Worker(TrainLoader, str(tmp_path / "results"))
    worker.check(job)
    foreign = tmp_path / "results/ada/ada.safetensors"
    atomic_write(foreign, lambda file: file.write_bytes(bytes(100)))
    with pytest.raises(InputError, match="ada"):
        worker.check(job)
    (other,) = read(write_jobs({"out": "eve"}, style="photos/person"))
    with pytest.raises(InputError):
        worker.check(other)


def test_a_full_disk_ends_the_job_and_leaves_nothing_half_written(
    write_jobs: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    (job,) = read(write_jobs({"out": "ada", "save_every": 1}))
    worker = Worker(TrainLoader, str(tmp_path / "results"), pictures=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="disk is full"):
            worker.train(job, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = [file for file in files(tmp_path / "results") if file.suffix != ".state"]
    assert not left, "whole states may stay, to go on from"
    assert worker.train(job, 2).outcome == "finished"


def test_a_gpu_is_asked_for_by_name() -> None:
    assert (TrainLoader(Need(gpus=0.5)).device, TrainLoader(Need()).device) == ("cuda", "cpu")
    assert Need(gpus=1, cpus=4).fits({"GPU": 3, "CPU": 8}) == 2
    assert Need(gpus=1).fits({"CPU": 8}) == 0 and str(Need(2, 3)) == "2 GPU and 3 CPU"
