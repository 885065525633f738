"""Batches under stress, and what they cost: workers killed at random, a full disk, a bad job.

    python benchmarks/batch_scale.py --out build/batch_scale

Jobs of a few steps on drawn faces, one core each. `plain` trains them one after another in this
process, as a program would. `steady` has one worker of a batch do the same jobs: what a job costs
beyond the plain loop, and whether memory grows. `killed` has two workers do them while workers are
killed at random and the disk, a small one of its own (which takes root's rights), is full for a
while. Every adapter of `steady` and `killed` is compared with that of `plain`, bit for bit.
`shared` prepares jobs that share photos with another. `words` counts what the text encoder is of a
step. Writes scale.json; docs/benchmarks/batch.md tells of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a job has a core to itself

import numpy as np
import torch
import yaml
from batch_shared import shared, told, words
from doll_photos import photos, portraits, write
from PIL import Image
from safetensors.torch import load_file

from magicapture.adapters import save_adapter
from magicapture.batch import At, BatchSettings, Job, Record, carry_out, read_jobs
from magicapture.cli.batch_jobs import JobReader, TrainLoader, TrainParser
from magicapture.cli.model import backbone_from
from magicapture.cli.recipe import recipe_from
from magicapture.cli.training import job_from
from magicapture.files import TEMPORARY
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.training import Trainer

DISK = 640  # MB of the disk that fills up
FULL_FOR = 20.0  # seconds for which it stays full


def main() -> None:
    """Run the stages asked for, and add what they found to scale.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/batch_scale"))
    parser.add_argument("--jobs", type=int, default=50, help="of plain and steady")
    parser.add_argument("--good", type=int, default=40, help="of killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--stages", default="plain,steady,killed,shared,words")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    jobs = make_jobs(asked.out.absolute(), max(asked.jobs, asked.good), asked.steps)
    good = [job for job in jobs if job.name != "bad"]
    bad = [job for job in jobs if job.name == "bad"]
    stages = {
        "plain": lambda: plain(good, asked.out / "plain"),
        "steady": lambda: steady(good[: asked.jobs], asked.out),
        "killed": lambda: killed([*good[: asked.good], *bad], asked.out, asked.kills),
        "shared": lambda: shared(asked.out.absolute() / "shared"),
        "words": words,
    }
    file = asked.out / "scale.json"
    for stage in asked.stages.split(","):
        found = json.loads(file.read_text()) if file.exists() else {}
        found[stage] = stages[stage]()
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(stage, json.dumps(found[stage]), flush=True)  # noqa: T201


def make_jobs(out: Path, count: int, steps: int) -> list[Job]:
    """Draw the photos, once, and write the file of jobs; a bad one, of noise, in the middle."""
    for number in range(4):
        if not (out / f"person{number}").exists():
            write(photos(2_000_000 + 1000 * number, 2, 128), out / f"person{number}")
            write(portraits(2_000_500 + 1000 * number, 2, 128), out / f"style{number}")
    noise = out / "noise"
    noise.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(noise / f"{number}.png")
    lines: list[dict[str, Any]] = [
        {"out": f"job{n:02}", "person": f"person{n % 4}", "style": f"style{n // 4 % 4}", "seed": n}
        for n in range(count)
    ]
    lines.insert(count // 2, {"out": "bad", "person": "noise", "style": "style0"})
    defaults = {
        "base": str(WEIGHTS),
        "steps": steps,
        "resolution": 64,
        "rank": 4,
        "save_every": 1,
        "face_model": "none",
        "set": {"variants": 1},
    }
    file = out / "jobs.yaml"
    file.write_text(yaml.safe_dump({"defaults": defaults, "jobs": lines}, sort_keys=False))
    return read_jobs(file, JobReader(out))


# -- stages ------------------------------------------------------------------------------------


def plain(jobs: Sequence[Job], folder: Path) -> dict[str, Any]:
    """The same trainings in a loop, with one base model and states saved as often."""
    parser, backbone, spent, seconds = TrainParser(), None, [], []
    for job in jobs:
        cpu, wall = time.process_time(), time.perf_counter()
        arguments = parser.read(job)
        recipe = recipe_from(arguments)
        ready = job_from(arguments, recipe, None)
        backbone = backbone or backbone_from(arguments, recipe.precision)
        place = folder / job.name
        with Trainer.open(ready, backbone, state_folder=place / "states", save_every=1) as trainer:
            adapter = trainer.run()
        save_adapter(adapter, place, place / "embeddings", job.name)
        spent.append(time.process_time() - cpu)
        seconds.append(time.perf_counter() - wall)
    return {"jobs": len(jobs), "cpu_seconds": told(spent[1:]), "seconds": told(seconds[1:])}


def steady(jobs: Sequence[Job], out: Path) -> dict[str, Any]:
    """One worker does all jobs; the first ones, while it still loads, are left out of the costs."""
    show = Watch()
    began = time.perf_counter()
    settings = BatchSettings(
        str(out.absolute() / "steady"), workers=1, gpus=0, fresh=True, pictures=False
    )
    records = carry_out(jobs, TrainLoader, settings, show)
    cpu, wall, memory = show.cpu, show.wall, show.memory
    return {
        "jobs": len(jobs),
        "finished": sum(record.outcome == "finished" for record in records),
        "equal": sum(same(out, "steady", record.name) for record in records),
        "processes": len(show.processes),
        "cpu_seconds": told(_steps(cpu)),
        "worker_cpu_seconds": told(_steps(show.worker_cpu)),
        "seconds": told(_steps(wall)),
        "start_seconds": round(wall[0] - began - records[0].total, 1),
        "parts": {
            part: told([record.seconds[part] for record in records[1:]])
            for part in records[0].seconds
        },
        "memory_mb": {
            str(n): round(memory[n - 1]) for n in (1, 2, 5, 10, 20, 30, 40, 50) if n <= len(memory)
        },
    }


def killed(jobs: Sequence[Job], out: Path, kills: int) -> dict[str, Any]:
    """Two workers, killed at random, on a disk that is full for a while."""
    place = out.absolute() / "disk"
    show, failures = Killer(kills, len(jobs), place), Failures()
    log = logging.getLogger("magicapture.batch.pool")
    log.setLevel(logging.DEBUG)
    log.addHandler(failures)
    with small_disk(place):
        settings = BatchSettings(
            str(place / "results"), workers=2, gpus=0, fresh=True, pictures=False, retries=60
        )
        began = time.perf_counter()
        records = carry_out(jobs, TrainLoader, settings, show)
        took = time.perf_counter() - began
        finished = [record for record in records if record.outcome == "finished"]
        files = [file for file in (place / "results").rglob("*") if file.is_file()]
        names = {file.name for file in files}
        whole = {"index.html", "job.json", "my-person.safetensors", "my-style.safetensors"}
        return {
            "jobs": len(jobs),
            "kills": show.kills,
            "full_disk_failures": failures.full,
            "lost_workers": failures.lost,
            "finished": len(finished),
            "equal": sum(same(out, "disk/results", record.name) for record in finished),
            "refused": {r.name: r.reason for r in records if r.outcome == "refused"},
            "failed": {r.name: r.reason for r in records if r.outcome == "failed"},
            "went_on": sum(bool(record.resumed) for record in finished),
            "most_tries": max(record.tries for record in records),
            "half_written": sum(TEMPORARY in str(file) for file in files),
            "other_files": sorted(names - whole - {f"{r.name}.safetensors" for r in finished}),
            "minutes": round(took / 60, 1),
        }


def same(out: Path, stage: str, name: str) -> bool:
    """Whether a job's LoRA and embeddings are those of the plain loop, bit for bit."""
    alone, batch = out / "plain" / name, out / stage / name
    files = sorted(file.relative_to(alone) for file in alone.rglob("*.safetensors"))
    for file in files:
        one, other = load_file(alone / file), load_file(batch / file)
        if one.keys() != other.keys() or not all(v.equal(other[k]) for k, v in one.items()):
            return False
    return len(files) == 3


# -- watching and disturbing -------------------------------------------------------------------


class Watch:
    """Notes at each job's end what all processes and the worker have spent, and its memory."""

    def __init__(self) -> None:
        self.processes: list[int] = []
        self.cpu: list[float] = []
        self.worker_cpu: list[float] = []
        self.wall: list[float] = []
        self.memory: list[float] = []

    def begin(self, stage: str, jobs: int) -> None:
        """A stage begins."""

    def at(self, at: At) -> None:
        """A job has done a step."""
        if at.process not in self.processes:
            self.processes.append(at.process)

    def done(self, record: Record) -> None:
        """A job has ended."""
        if record.outcome == "finished" and self.processes:
            self.wall.append(time.perf_counter())
            self.cpu.append(sum(map(cpu_of, (os.getpid(), *descendants(os.getpid())))))
            self.worker_cpu.append(cpu_of(self.processes[-1]))
            status = Path(f"/proc/{self.processes[-1]}/status").read_text()
            self.memory.append(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024)


class Killer:
    """Kills workers at random, some hundred milliseconds after a step, and fills the disk once."""

    def __init__(self, wanted: int, jobs: int, disk: Path) -> None:
        self.wanted, self.left, self.disk = wanted, jobs, disk
        self.kills, self._random, self._filled = 0, random.Random(0), False
        self._dead: set[int] = set()

    def begin(self, stage: str, jobs: int) -> None:
        """A stage begins."""
        print(stage, jobs, flush=True)  # noqa: T201
        self.left = jobs

    def at(self, at: At) -> None:
        """A job has done a step."""
        chance = (self.wanted - self.kills) / (2 * max(1, self.left))
        if at.process not in self._dead and self._random.random() < chance:
            time.sleep(self._random.uniform(0, 0.4))  # between two steps, or while one is saved
            with suppress(ProcessLookupError):
                os.kill(at.process, signal.SIGKILL)
                self._dead.add(at.process)
                self.kills += 1

    def done(self, record: Record) -> None:
        """A job has ended."""
        self.left -= 1
        print(record.name, record.outcome, self.kills, "kills", flush=True)  # noqa: T201
        if record.name == "job08" and not self._filled:
            self._filled = True
            threading.Thread(target=fill, args=(self.disk,), daemon=True).start()


class Failures(logging.Handler):
    """Counts why jobs were tried again."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.full = self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        text = record.getMessage()
        self.full += "disk is full" in text or "MiB free" in text
        self.lost += "actor" in text.lower()


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of its own, in memory, at a folder."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(place)]
    if subprocess.run(command).returncode:
        sys.exit("The stage killed mounts a small disk, which takes root's rights.")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)])


def fill(disk: Path) -> None:
    """Fill a disk to its last byte, and free it again after a while."""
    file = disk / "filler"
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(2**16))
    print("the disk is full", flush=True)  # noqa: T201
    time.sleep(FULL_FOR)
    file.unlink()
    print("the disk is free", flush=True)  # noqa: T201


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {process})


def cpu_of(process: int) -> float:
    """Seconds of a core that a process has taken, with those of its ended children."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _steps(values: Sequence[float]) -> list[float]:
    """Differences from one job to the next, but for the first two."""
    return [after - before for before, after in pairwise(values[2:])]


if __name__ == "__main__":
    main()
