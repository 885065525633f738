"""A worker: does one job after another with models that it loads once."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from ..adapters import Adapter, check_names, lora_file, save_adapter
from ..backbone import Backbone
from ..errors import StorageError
from ..faces.embed import FaceEmbedder
from ..html import jpeg
from ..training import Event, Previewed, Resumed, Stepped, Trainer, TrainingJob, Warned
from ..version import __version__
from .jobs import Job
from .pool import NEED, Need
from .record import FILE, PICTURE, STATES, Record, read_record
from .store import Place, Store


@dataclass(frozen=True)
class At:
    """How far a job is: steps done and in all, and which process of which machine is at it."""

    name: str
    step: int
    steps: int
    machine: str
    process: int


Tell = Callable[[At], object]

_LAST = 0.1  # the share of the steps, at the end, over which losses are averaged


@dataclass(frozen=True)
class Opened:
    """A job with its models.

    bundle: the tokens go into the LoRA's file. credited: the adapter with what its files say of
    their making. warnings: what was noticed on the way.
    """

    job: TrainingJob
    backbone: Backbone
    embedder: FaceEmbedder | None
    save_every: int
    bundle: bool = False
    credited: Callable[[Adapter], Adapter] = lambda adapter: adapter
    warnings: Sequence[str] = ()


class Loader(Protocol):
    """Turns a job's words into photos and models, and keeps the models for the next job."""

    def check(self, job: Job) -> TrainingJob:
        """Read a job's photos, find their faces, and check all that needs no base model.

        Raises MagiCaptureError for what cannot work.
        """
        ...

    def open(self, job: Job) -> Opened:
        """The job with its models; raises MagiCaptureError."""
        ...


class Worker:
    """Does a batch's jobs, one at a time.

    loader: makes the loader. results: a store's address. tell: is told of progress. need: what it
    holds, threads as many as cores. pictures: draws one after each training.
    """

    def __init__(
        self,
        loader: Callable[[Need], Loader],
        results: str,
        tell: Tell = lambda at: None,
        *,
        need: Need = NEED,
        pictures: bool = True,
    ) -> None:
        torch.set_num_threads(need.cpus)
        self.loader, self.store = loader(need), Store(results)
        self.tell, self.pictures = tell, pictures

    def facts(self) -> tuple[str, str, int]:
        """The version of MagiCapture that runs here, the machine's name, and the process."""
        return __version__, platform.node(), os.getpid()

    def check(self, job: Job) -> None:
        """Raise MagiCaptureError for a job that cannot work, before its base model is read."""
        ready = self.loader.check(job)
        if self.store.folder is not None:
            folder, leaf = self.store.folder / job.name, Path(job.name).name
            check_names(ready.concepts, [folder / "embeddings"], lora_file(folder, leaf))

    def train(self, job: Job, tries: int) -> Record:
        """Train a job, or go on with it, write its results, and its record last.

        tries: how often it was begun, this time counted. Raises MagiCaptureError.
        """
        known = read_record(self.store, job) if tries > 1 else None
        if known is not None:  # killed right behind its last file
            self.store.remove(f"{job.name}/{STATES}")
            return replace(known, tries=tries)
        with self.store.opened(job.name, STATES) as place:
            run = _Run(job, place, self.tell)
            opened = self.loader.open(job)
            run.warnings += opened.warnings
            run.mark("load")
            with Trainer.open(
                opened.job,
                opened.backbone,
                embedder=opened.embedder,
                listener=run,
                state_folder=place.near / STATES,
                save_every=opened.save_every,
            ) as trainer:
                adapter = run.trained(trainer)
                shown = trainer.preview() if self.pictures else None
                run.mark("draw")
            leaf = Path(job.name).name
            adapter, embeddings = opened.credited(adapter), place.near / "embeddings"
            files = save_adapter(adapter, place.near, embeddings, leaf, bundle=opened.bundle)
            names = [run.inside(file) for file in (files.lora, *files.embeddings)]
            if shown is not None:
                place.write(PICTURE, jpeg(shown.images[0]))
                names.append(PICTURE)
            place.send()
            run.mark("save")
            record = Record.of(
                job,
                "finished",
                steps=trainer.step,
                tries=tries,
                resumed=tuple(run.resumed),
                worker="{1} {2}".format(*self.facts()),
                seconds=run.seconds,
                scores=_scores(trainer.history, shown),
                warnings=(*dict.fromkeys((*run.warnings, *files.notes)),),
                files=tuple(names),
            )
            place.write(FILE, record.to_json().encode())
        self.store.remove(f"{job.name}/{STATES}")
        return record


@dataclass
class _Run:
    """A training's listener: tells of its progress, keeps its state in the store, and the time."""

    job: Job
    place: Place
    tell: Tell
    trainer: Trainer | None = None
    resumed: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _sent: int | None = None
    _last: float = field(default_factory=time.perf_counter)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            here = platform.node(), os.getpid()
            self.tell(At(self.job.name, event.step, event.steps, *here))
            self._keep()
        elif isinstance(event, Resumed):
            self.resumed.append(event.step)
        elif isinstance(event, Warned):
            self.warnings.append(event.text)

    def trained(self, trainer: Trainer) -> Adapter:
        """Train to the end, and bring the last state to the store, whatever ends it."""
        self.trainer = trainer
        self.mark("prepare")
        try:
            return trainer.run()
        finally:
            self._keep()
            self.mark("train")

    def _keep(self) -> None:
        """Send a state that was saved since; like saving it, this must not end the run."""
        keeper = self.trainer.keeper if self.trainer else None
        if keeper is None or keeper.step == self._sent:
            return
        try:
            self.place.send()
            self._sent = keeper.step
        except StorageError as error:
            self.warnings.append(str(error))

    def mark(self, part: str) -> None:
        """The part that ran since the last mark has ended."""
        now = time.perf_counter()
        self.seconds[part], self._last = round(now - self._last, 3), now

    def inside(self, file: Path) -> str:
        """A file's name in the job's folder."""
        return file.relative_to(self.place.near.resolve()).as_posix()


def _scores(history: Sequence[Mapping[str, float]], shown: Previewed | None) -> dict[str, float]:
    """The losses' means over the last steps, and each token's leakage in a portrait."""
    last = history[-max(1, round(_LAST * len(history))) :]
    names = sorted({name for losses in last for name in losses})
    found = {}
    for name in names:
        values = [losses[name] for losses in last if name in losses]
        found[f"{name} loss"] = round(sum(values) / len(values), 4)
    for token, share in (shown.leakages if shown else {}).items():
        found[f"leakage of {token}"] = round(share, 4)
    return found
