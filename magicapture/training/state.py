"""The state of a run on disk, from which it goes on as if it had never stopped.

A run's file is named after the run, so that the same photos, recipe, seed and models find it
again, and no other run does. Finished runs keep theirs: asked for again, they answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import StorageError
from ..files import atomic_write
from ..interrupts import uninterrupted

logger = logging.getLogger(__name__)

HEADER = b"MagiCapture state 2\n"
"""What a file begins with; a checksum of the rest, SHA-256, comes next."""

KEPT = 5
"""States of other runs that a folder keeps; the oldest go first."""

SPACE = 256 * 2**20
"""Bytes that must be free before a run: several states of an ordinary LoRA and its optimiser."""

EVERY_STEPS = 200
EVERY_SECONDS = 60.0
"""How much is lost at most where a run is killed: so many steps or, if it is less, so much time."""

_STATE = re.compile(r"[0-9a-f]{24}\.state")
_LEFTOVERS = ("*.tmp-magicapture", ".*.state")
_ABANDONED = 60.0  # seconds in which a file that is still being written has changed
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def kept_folder(state: Path) -> Path:
    """Where the checkpoints of the run of a state lie; it goes when the state does."""
    return state.with_suffix(".kept")


class StateKeeper:
    """Keeps the newest state of a run in a folder.

    run: the run's name, in hexadecimal digits; it is the "fingerprint" of its states. every_steps:
    0 saves by time alone. warn: is told, in one line, of what goes wrong; of a full disk once,
    until it takes a state again.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        *,
        every_steps: int = EVERY_STEPS,
        every_seconds: float = EVERY_SECONDS,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self.path, self.run = folder / f"{run[:24]}.state", run
        self.every_steps, self.every_seconds, self.warn = every_steps, every_seconds, warn
        self.problem = ""
        """Why the last state could not be saved; empty if it was."""
        self._step: int | None = None
        self._tried = time.monotonic()

    @property
    def step(self) -> int | None:
        """The step after which the state on disk was made; None where there is none."""
        return self._step if self.path.exists() else None

    def due(self, step: int) -> bool:
        """Whether the state after this step should be saved though the run goes on."""
        waited = time.monotonic() - self._tried
        by_steps = self.every_steps > 0 and step % self.every_steps == 0
        return by_steps or waited >= self.every_seconds

    def save(self, state: dict[str, Any]) -> bool:
        """Save the state after its "step"; whether it worked.

        What goes wrong must neither end a run nor hide what ended it. Ctrl-C waits.
        """
        self._tried = time.monotonic()
        before, self.problem = self.problem, ""
        try:
            with uninterrupted():
                _write(self.path, state)
                self._step = state["step"]
                _tidy(self.path)
        except Exception as error:
            self.problem = _reason(error)
            if not before:
                self.warn(
                    f"What is trained cannot be saved to {self.path.parent} ({self.problem}). "
                    "Training goes on, and saving is tried again."
                )
        return not self.problem

    def load(self) -> dict[str, Any] | None:
        """The state on disk; None where there is none.

        One that is damaged or of another version is kept under another name, with a warning.
        Raises StorageError where the file cannot be read.
        """
        _tidy(self.path)
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"The saved state {self.path} cannot be read ({error}). Let it be read, or start "
                "over without it."
            ) from error
        state = _read(data)
        if state is None or state["fingerprint"] != self.run:
            aside = _set_aside(self.path)
            damage = "damaged" if data.startswith(HEADER) else "damaged or of another version"
            self.warn(
                f"The saved state {self.path} is {damage}: the run starts over. What was there is "
                f"kept as {aside.name}."
            )
            return None
        self._step = state["step"]
        return state

    def farewell(self, step: int, steps: int, again: str) -> str:
        """What to tell a user whose run stopped early; `again` says how it goes on."""
        text = f"Stopped after step {step} of {steps}."
        if self.step == step:
            return f"{text} Nothing is lost: {again}"
        text += f" Not saved: {self.problem or 'the state is gone'}."
        if self.step is not None:
            text += f" What is saved is step {self.step}: {again}"
        return text


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write a state with its checksum; raises StorageError where the disk will not take it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(HEADER)
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    atomic_write(path, write)


def _read(data: bytes) -> dict[str, Any] | None:
    """The state in a file's bytes; None unless they are as they were written."""
    start = len(HEADER) + hashlib.sha256().digest_size
    checksum, content = data[len(HEADER) : start], memoryview(data)[start:]
    if not data.startswith(HEADER) or hashlib.sha256(content).digest() != checksum:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _set_aside(path: Path) -> Path:
    """Give a file a name under which no state is looked for; the new name."""
    aside = path.with_suffix(".damaged")
    number = 2
    while aside.exists():
        aside = path.with_suffix(f".damaged-{number}")
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise StorageError(
            f"The saved state {path} is damaged and cannot be renamed ({error}). Move it away to "
            "start over."
        ) from error
    return aside


def _tidy(path: Path) -> None:
    """Remove all but the newest states of other runs, and what killed saves have left."""
    folder = path.parent
    with contextlib.suppress(OSError):  # another process may have tidied up meanwhile
        others = [p for p in folder.iterdir() if _STATE.fullmatch(p.name) and p != path]
        others.sort(key=lambda p: p.stat().st_mtime)
        leftovers = [
            p
            for pattern in _LEFTOVERS
            for p in folder.glob(pattern)
            if time.time() - p.stat().st_mtime > _ABANDONED
        ]
        for old in [*others[:-KEPT], *leftovers]:
            old.unlink(missing_ok=True)
            shutil.rmtree(kept_folder(old), ignore_errors=True)


def _reason(error: Exception) -> str:
    """Why a file could not be written, in a few words."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    number = getattr(cause, "errno", None)
    if number in _FULL:
        return "the disk is full"
    if number is not None:
        return os.strerror(number).lower()
    return str(cause) or type(cause).__name__
