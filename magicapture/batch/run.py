"""A whole batch: what is finished is left alone, photos are checked first, then all is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InputError
from ..version import __version__
from .jobs import Job
from .page import PAGE, write_summary
from .pool import Failed, Need, Pool, cluster
from .protocols import Loader
from .record import FILE, Record, read_record
from .store import Store
from .worker import At, Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSettings:
    """How a batch is run.

    results: a folder that all machines see, or an fsspec address. address: of a Ray cluster; None
    starts one on this machine. gpus, cpus: what a job takes; gpus None: one where there are any.
    workers: how many at a time; None: as many as the cluster takes. retries: of a job that fails
    or whose worker is lost. fresh: finished jobs are run again. pictures: one after each training,
    for the page.
    """

    results: str
    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    workers: int | None = None
    retries: int = 5
    fresh: bool = False
    pictures: bool = True


class Show(Protocol):
    """What is told of a batch while it runs."""

    def begin(self, stage: str, jobs: int) -> None:
        """A stage begins, with so many jobs to do."""
        ...

    def at(self, at: At) -> None:
        """A job has done a step."""
        ...

    def done(self, record: Record) -> None:
        """A job has ended."""
        ...


class Board:
    """Where workers write how far they are, for whoever looks."""

    def __init__(self) -> None:
        self._at: dict[str, At] = {}

    def tell(self, at: At) -> None:
        """A job has done a step."""
        self._at[at.name] = at

    def told(self) -> list[At]:
        """How far each job is that has done a step since the last look."""
        told, self._at = [*self._at.values()], {}
        return told


def carry_out(
    jobs: Sequence[Job], loader: Callable[[Need], Loader], settings: BatchSettings, show: Show
) -> list[Record]:
    """Do the jobs that are not finished, and return what became of each, in the jobs' order.

    loader: is sent to the workers, which must be able to import it. The summary is written at the
    end, and when it is interrupted. Raises InputError and StorageError where no job can be done.
    """
    store = Store(settings.results)
    records: dict[str, Record] = {}
    for job in jobs:
        if settings.fresh:
            store.remove(f"{job.name}/{FILE}")
        elif (known := read_record(store, job)) is not None:
            records[job.name] = known
    todo = [job for job in jobs if job.name not in records]
    if records:
        logger.info("%s", f"{len(records)} of {len(jobs)} jobs are finished already.")
    try:
        if todo:
            with _pool(loader, settings, show) as pool:
                for record in _done(pool, todo, show):
                    records[record.name] = record
                    show.done(record)
    finally:
        found = [records[job.name] for job in jobs if job.name in records]
        write_summary(store, found, len(jobs))
        logger.info("Wrote %s", store.path(PAGE))
    return found


def _done(pool: Pool, jobs: Sequence[Job], show: Show) -> Iterator[Record]:
    """Check every job's photos, then train those that can work."""
    sound = []
    show.begin("checking photos", len(jobs))
    for answer in pool.map(lambda worker, job, tries: worker.check.remote(job), jobs):
        if isinstance(answer, Failed):
            yield _given_up(answer, "refused")
        else:
            sound.append(answer[0])
    sound.sort(key=lambda job: job.line)
    show.begin("training", len(sound))
    for answer in pool.map(lambda worker, job, tries: worker.train.remote(job, tries), sound):
        yield _given_up(answer, "failed") if isinstance(answer, Failed) else answer[1]


def _given_up(failed: Failed[Job], outcome: Any) -> Record:
    reason = str(failed.error) or type(failed.error).__name__
    return Record.of(failed.item, outcome, reason=reason, tries=failed.tries)


@contextmanager
def _pool(loader: Callable[[Need], Loader], settings: BatchSettings, show: Show) -> Iterator[Pool]:
    with cluster(settings.address) as ray:
        gpus = settings.gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        need = Need(gpus, settings.cpus)
        board = ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()

        def look() -> None:
            try:
                told = ray.get(board.told.remote(), timeout=10)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                return  # it starts again, and shows nothing meanwhile
            for at in told:
                show.at(at)

        def start() -> Any:
            options = {"num_cpus": need.cpus, "num_gpus": need.gpus}
            return (
                ray.remote(Worker)
                .options(**options)
                .remote(
                    loader,
                    settings.results,
                    board.tell.remote,
                    need=need,
                    pictures=settings.pictures,
                )
            )

        grows = settings.address is not None
        pool = Pool(ray, start, _check, need, settings.workers, settings.retries, grows, look)
        try:
            yield pool
        finally:
            pool.close()


def _check(facts: tuple[str, str, int]) -> None:
    version, machine, _ = facts
    if version != __version__:
        raise InputError(
            f"MagiCapture is {version} on {machine} and {__version__} here; install one version "
            "on all machines."
        )
