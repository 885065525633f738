"""A whole batch on a Ray cluster of two workers: one is killed, one job's photos cannot work."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from magicapture.batch import At, BatchSettings, Record, carry_out, read_jobs
from magicapture.cli import main
from magicapture.cli.batch_jobs import JobReader, TrainLoader

from .conftest import Write

pytestmark = pytest.mark.timeout(900)

STEPS = 16


class Killer:
    """Kills the first worker that has done some steps, and keeps what it is told."""

    def __init__(self) -> None:
        self.killed: At | None = None
        self.records: list[Record] = []
        self.processes: set[int] = set()

    def begin(self, stage: str, jobs: int) -> None:
        pass

    def at(self, at: At) -> None:
        self.processes.add(at.process)
        if self.killed is None and 3 <= at.step < STEPS - 3:
            self.killed = at
            os.kill(at.process, signal.SIGKILL)

    def done(self, record: Record) -> None:
        self.records.append(record)


def test_two_workers_and_a_kill(
    write_jobs: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = tmp_path / "photos" / "noise"
    noise.mkdir(parents=True)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(noise / f"{index}.png")
    file = write_jobs(
        {"out": "ada", "seed": 1},
        {"out": "bad", "person": "photos/noise"},
        {"out": "eve", "seed": 2},
        steps=STEPS,
        save_every=1,
    )
    jobs = read_jobs(file, JobReader(file.parent))
    out, killer = tmp_path / "results", Killer()
    settings = BatchSettings(str(out), workers=2, gpus=0)
    records = {record.name: record for record in carry_out(jobs, TrainLoader, settings, killer)}

    assert [*records] == ["ada", "bad", "eve"]
    bad = records.pop("bad")
    assert bad.outcome == "refused" and "No face was found" in bad.reason
    assert killer.records[0] == bad, "told before any training"
    assert killer.killed is not None and len(killer.processes) >= 2
    killed = records[killer.killed.name]
    assert killed.tries == 2 and killed.resumed[0] >= killer.killed.step - 1
    for job in jobs:
        if job.name != "bad":
            record = records[job.name]
            assert (record.outcome, record.steps) == ("finished", STEPS)
            folder = out / job.name
            alone = tmp_path / "alone" / job.name
            assert main(["train", *job.words, "--device=cpu", f"--out-dir={alone}"]) == 0
            for name in (f"{job.name}.safetensors", "embeddings/my-person.safetensors"):
                one, other = load_file(folder / name), load_file(alone / name)
                assert one.keys() == other.keys()
                assert all(value.equal(other[key]) for key, value in one.items())
    left = {path.name for path in out.rglob("*") if path.is_file()}
    own = {f"{name}.safetensors" for name in (*records, "my-person", "my-style")}
    assert left == own | {"job.json", "picture.jpg", "index.html"}

    page = (out / "index.html").read_text()
    assert "3 jobs: 2 finished, 1 refused before training." in page
    assert "No face was found in 0.png, 1.png" in page
    assert page.count("data:image/jpeg") == 2 and "http://" not in page and "https://" not in page

    before = (out / "eve" / "job.json").stat().st_mtime_ns
    caplog.set_level(logging.INFO)
    words = ["batch", str(file), "--out", str(out), "--gpus", "0", "--workers", "1"]
    assert main(words) == 2
    assert "2 of 3 jobs are finished already." in caplog.messages
    assert "2 finished, 1 refused before training. The same command tries again" in caplog.text
    assert (out / "eve" / "job.json").stat().st_mtime_ns == before
