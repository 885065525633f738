"""Workers on a Ray cluster: what is lost or fails is tried again, on whichever worker is free.

A worker is an actor: it holds its GPU or cores, and its models, from job to job. Ray's plain tasks
do not keep a process to one GPU, and would load the models anew.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..errors import InputError, MagiCaptureError, OutOfMemoryError, StorageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TICK = 0.5  # seconds between looks at the workers
_LOOK = 5.0  # seconds between looks at the size of the cluster
_PAUSE, _LONGEST = 1.0, 60.0  # seconds before a second try, doubled each time, and at most
_STARTS = 5  # workers that may die one after another before any was ready


@dataclass(frozen=True)
class Need:
    """What a worker holds: GPUs and CPU cores."""

    gpus: float = 0
    cpus: int = 1

    @property
    def resources(self) -> dict[str, float]:
        """The same by Ray's names, without what is not needed."""
        return {name: n for name, n in (("GPU", self.gpus), ("CPU", float(self.cpus))) if n}

    def fits(self, has: Mapping[str, float]) -> int:
        """How many workers resources are enough for."""
        return min(int(has.get(name, 0) // number) for name, number in self.resources.items())

    def __str__(self) -> str:
        return " and ".join(f"{number:g} {name}" for name, number in self.resources.items())


NEED = Need()
"""A core, and no GPU."""


@dataclass(frozen=True)
class Failed(Generic[T]):
    """An item that was given up, why, and after how many tries."""

    item: T
    error: BaseException
    tries: int


@dataclass
class _Try(Generic[T]):
    """An item to do: tries so far, and the time before which it waits."""

    item: T
    tries: int = 0
    after: float = 0.0


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or to one of this machine's own for as long.

    Nothing is reported to anybody. Raises InputError where Ray is missing or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "Batches run on Ray, which is not installed: pip install 'magicapture[batch]'."
        ) from error
    handler = signal.getsignal(signal.SIGTERM)
    context = _joined(ray, address)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in its place
    if context.dashboard_url:
        logger.info("Ray's dashboard: http://%s", context.dashboard_url)
    try:
        yield ray
    finally:
        ray.shutdown()


def _joined(ray: Any, address: str | None) -> Any:
    """What Ray tells of the cluster that it joined, or started here."""
    try:
        return ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR
        )
    except Exception as error:  # Ray raises that very class where a busy machine is slow
        where = f"no Ray cluster answers at --address {address}"
        raise InputError(
            f"{where if address else 'Ray does not start on this machine'} ({_short(error)})."
        ) from error


@dataclass
class Pool:
    """As many workers as the cluster takes, and at most `most`.

    start: makes a worker of Ray's from nothing. check: raises MagiCaptureError for what a new one
    tells of itself. retries: how often an item is tried again. grows: whether a cluster without
    room for `most` may get it later. tick: is called at least every half second.
    """

    ray: Any
    start: Callable[[], Any]
    check: Callable[[Any], object]
    need: Need
    most: int | None = None
    retries: int = 5
    grows: bool = False
    tick: Callable[[], object] = lambda: None
    _idle: list[Any] = field(default_factory=list)
    _starting: dict[Any, Any] = field(default_factory=dict)
    _running: dict[Any, tuple[Any, _Try[Any]]] = field(default_factory=dict)
    _dead: int = 0
    _wanted: int = 0
    _looked: float = -_LOOK

    def map(
        self, call: Callable[[Any, T, int], Any], items: Sequence[T]
    ) -> Iterator[tuple[T, Any] | Failed[T]]:
        """Have every item done by some worker; each result with its item, as they come.

        call: asks a worker for an item, told how often it was begun, and returns Ray's reference.
        What the user must change is given up at once, all else after some tries. Raises
        InputError where the cluster is too small or no worker starts.
        """
        todo = [_Try(item) for item in items]
        while todo or self._running:
            self._grow(len(todo) + len(self._running))
            now = time.monotonic()
            for one in [one for one in todo if one.after <= now][: len(self._idle)]:
                todo.remove(one)
                worker = self._idle.pop()
                one.tries += 1
                self._running[call(worker, one.item, one.tries)] = worker, one
            for reference in self._done():
                worker, one = self._running.pop(reference)
                try:
                    result = self.ray.get(reference)
                except Exception as error:
                    cause = self._after(worker, error)
                    if _hopeless(cause) or one.tries > self.retries:
                        yield Failed(one.item, cause, one.tries)
                        continue
                    logger.info("%s", f"{one.item} is tried again: {_short(cause)}")
                    one.after = time.monotonic() + min(_LONGEST, _PAUSE * 2 ** (one.tries - 1))
                    todo.append(one)
                else:
                    self._idle.append(worker)
                    yield one.item, result
            self.tick()

    def close(self) -> None:
        """End the workers."""
        running = [worker for worker, _ in self._running.values()]
        for worker in (*self._idle, *self._starting.values(), *running):
            self.ray.kill(worker)

    # -- workers --------------------------------------------------------------------------------

    def _grow(self, items: int) -> None:
        """Start workers for the items, as many as the cluster takes now."""
        if (now := time.monotonic()) - self._looked >= _LOOK:
            self._looked = now
            room = self.need.fits(self.ray.cluster_resources())
            self._wanted = self.most if self.most and self.grows else min(self.most or room, room)
        if not self._wanted:
            has = ", ".join(
                f"{self.ray.cluster_resources().get(n, 0):g} {n}" for n in self.need.resources
            )
            raise InputError(
                f"A worker needs {self.need}, and no machine of the cluster has that (in all: "
                f"{has}). Give fewer (--gpus, --cpus), or another cluster."
            )
        have = len(self._idle) + len(self._starting) + len(self._running)
        for _ in range(min(items, self._wanted) - have):
            worker = self.start()
            self._starting[worker.facts.remote()] = worker

    def _done(self) -> list[Any]:
        """References of items that ended, within a tick; workers that are ready become idle."""
        waited = [*self._starting, *self._running]
        if not waited:
            time.sleep(_TICK)
            return []
        done, _ = self.ray.wait(waited, num_returns=1, timeout=_TICK)
        more, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in {*done, *more} & self._starting.keys():
            worker = self._starting.pop(reference)
            try:
                self.check(self.ray.get(reference))
            except self.ray.exceptions.RayActorError as error:
                self._dead += 1
                if self._dead >= _STARTS:
                    raise InputError(f"No worker starts: {_short(error)}") from error
            else:
                self._dead = 0
                self._idle.append(worker)
        return [*({*done, *more} & self._running.keys())]

    def _after(self, worker: Any, error: Exception) -> BaseException:
        """What an item failed of; the worker goes on where it is sound."""
        cause: BaseException = getattr(error, "cause", None) or error  # what was raised there
        if isinstance(cause, MagiCaptureError):
            self._idle.append(worker)
        else:  # it or its machine is gone; or a bug, and a GPU in a state that no one knows
            self.ray.kill(worker)
        return cause


def _hopeless(error: BaseException) -> bool:
    """Whether just the same would fail again: it is the user's to change."""
    passing = isinstance(error, StorageError | OutOfMemoryError)
    return isinstance(error, MagiCaptureError) and not passing


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
