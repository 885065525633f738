"""A worker: does one job after another with models that it loads once."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import StorageError
from ..html import jpeg
from ..training import Event, Resumed, Stepped, Trainer, Warned
from ..version import __version__
from .jobs import Job
from .pool import NEED, Need
from .protocols import Loader, Training
from .record import FILE, KEPT, PICTURE, STATES, Record, read_record
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
        training = self.loader.check(job)
        if self.store.folder is not None:
            training.check_files(self.store.folder / job.name, job.leaf)

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
            training, told = self.loader.open(job)
            run.warnings += told
            run.mark("load")
            with training.opened(run, place.near / STATES) as trainer:
                adapter = run.trained(training, trainer)
                shown = self._shown(training, trainer, adapter)
                run.mark("draw")
            files, notes = _saved(training, adapter, place, job.leaf)
            run.warnings += notes
            names = [run.inside(file) for file in files]
            if shown.picture is not None:
                place.write(PICTURE, jpeg(shown.picture))
                names.append(PICTURE)
            place.send()
            run.mark("save")
            record = Record.of(
                job,
                "finished",
                steps=trainer.step,
                chosen=shown.step,
                tries=tries,
                resumed=tuple(run.resumed),
                worker="{1} {2}".format(*self.facts()),
                seconds=run.seconds,
                scores={**_losses(trainer.history), **shown.scores},
                warnings=tuple(dict.fromkeys(run.warnings)),
                files=tuple(names),
            )
            place.write(FILE, record.to_json().encode())
        self.store.remove(f"{job.name}/{STATES}")
        return record

    def _shown(self, training: Training, trainer: Trainer, adapter: Adapter) -> _Shown:
        """What the page shows of the result: of a checkpoint what was drawn and scored of it."""
        kept = training.checkpoints
        if kept is not None:
            step = int(adapter.info["steps"])
            (scores,) = (one.scores for one in kept.records if one.step == step)
            return _Shown(kept.pictures(step)[0] if self.pictures else None, scores, step)
        if not self.pictures:
            return _Shown()
        seen = trainer.preview()
        leakages = {f"leakage of {token}": round(v, 4) for token, v in seen.leakages.items()}
        return _Shown(seen.images[0], leakages)


def _saved(
    training: Training, adapter: Adapter, place: Place, leaf: str
) -> tuple[list[Path], Sequence[str]]:
    """Write the result, and what checkpoints are kept; the files, and what is to be known."""
    saved = training.save(adapter, place.near, leaf)
    scores = training.save_scores(place.near, leaf)
    kept = training.save_kept(place.near / KEPT, leaf)
    return [saved.lora, *saved.embeddings, *scores, *kept], saved.notes


@dataclass(frozen=True, eq=False)
class _Shown:
    """A result's picture (3,H,W), its scores, and the checkpoint's step if it is one."""

    picture: Tensor | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    step: int = 0


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

    def trained(self, training: Training, trainer: Trainer) -> Adapter:
        """Train to the end, and bring the last state to the store, whatever ends it."""
        self.trainer = trainer
        self.mark("prepare")
        try:
            return training.run(trainer)
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


def _losses(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The losses' means over the last steps."""
    last = history[-max(1, round(_LAST * len(history))) :]
    found = {}
    for name in sorted({name for losses in last for name in losses}):
        values = [losses[name] for losses in last if name in losses]
        found[f"{name} loss"] = round(sum(values) / len(values), 4)
    return found
