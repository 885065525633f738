"""What a worker needs of the program that a job is written for: its words made into a training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..adapters import Adapter, SavedFiles
from ..checkpoints import Checkpoints
from ..training import Listener, Trainer
from .jobs import Job


class Training(Protocol):
    """A job made ready, as the command line trains one."""

    @property
    def checkpoints(self) -> Checkpoints | None:
        """Of several steps, where the job keeps any."""

    def check_files(self, folder: Path, name: str) -> list[str]:
        """Raise InputError where a file is in the way that is not ours."""
        ...

    def opened(self, listener: Listener, states: Path) -> AbstractContextManager[Trainer]:
        """The trainer, for a job that has its models."""
        ...

    def run(self, trainer: Trainer) -> Adapter:
        """Train to the end; the adapter that is the result."""
        ...

    def save(self, adapter: Adapter, folder: Path, name: str) -> SavedFiles:
        """Write the result; raises InputError, StorageError."""
        ...

    def save_scores(self, folder: Path, name: str) -> list[Path]:
        """Write what checkpoints scored, and their pictures; returns the files."""
        ...

    def save_kept(self, folder: Path, name: str) -> list[Path]:
        """Write the adapter of each kept step; returns the files."""
        ...


class Loader(Protocol):
    """Turns a job's words into photos and models, and keeps the models for the next job."""

    def check(self, job: Job) -> Training:
        """Read a job's photos, find their faces, and check all that needs no base model.

        Raises MagiCaptureError for what cannot work.
        """
        ...

    def open(self, job: Job) -> tuple[Training, Sequence[str]]:
        """The job with its models, and what was warned of; raises MagiCaptureError."""
        ...
