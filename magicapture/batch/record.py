"""What became of a job, as a file among its results: its last, so that it says they are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from .jobs import Job
from .store import Store

FILE, PICTURE, STATES, KEPT = "job.json", "picture.jpg", "states", "checkpoints"
"""Names inside a job's folder."""

Outcome = Literal["finished", "refused", "failed"]
MADE_BY = "magicapture batch"


@dataclass(frozen=True)
class Record:
    """What became of a job.

    refused: its photos or settings cannot work, and nothing was trained. chosen: the step whose
    checkpoint is the result; 0 where none are kept. tries: how often it was begun; resumed: the
    steps after which it went on. seconds: by part of the work of the last try. scores: by name.
    files: of the results, as their names in the job's folder.
    """

    name: str
    line: int
    fingerprint: str
    outcome: Outcome
    reason: str = ""
    steps: int = 0
    chosen: int = 0
    tries: int = 1
    resumed: tuple[int, ...] = ()
    worker: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, job: Job, outcome: Outcome, **more: Any) -> Record:
        """The record of a job."""
        return cls(job.name, job.line, job.fingerprint, outcome, **more)

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def to_json(self) -> str:
        """As text; `read_record` reads it."""
        return json.dumps({"made_by": MADE_BY, **asdict(self)}, indent=1, ensure_ascii=False)


def read_record(store: Store, job: Job) -> Record | None:
    """The record of a job that was finished just as it is now, and whose files are there; or None.

    Raises StorageError.
    """
    data = store.read(f"{job.name}/{FILE}")
    if data is None:
        return None
    try:
        told = json.loads(data)
        known = {one.name for one in fields(Record)}
        kept: dict[str, Any] = {k: v for k, v in told.items() if k in known}
        lists = {k: tuple(v) for k, v in kept.items() if isinstance(v, list)}
        record = Record(**{**kept, **lists, "line": job.line})
    except (ValueError, TypeError, AttributeError):  # of another program, or of another version
        return None
    same = record.outcome == "finished" and record.fingerprint == job.fingerprint
    whole = same and all(store.exists(f"{job.name}/{file}") for file in record.files)
    return record if whole else None
