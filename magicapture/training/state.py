"""The state of a run on disk, from which it goes on as if it had never stopped.

A run's file is named after its fingerprint, so that the same photos, recipe, seed and base model
find it again, and no other run does. Finished runs keep theirs: asked for again, they answer at
once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..errors import StorageError
from ..files import atomic_write, require_space

logger = logging.getLogger(__name__)

VERSION = 1
KEPT = 5
"""States of runs that a folder keeps; the oldest go first."""

SPACE = 256 * 2**20
"""Bytes that must be free before a run: several states of an ordinary LoRA and its optimiser."""


def check_space(folder: Path) -> None:
    """Raise StorageError, before step 1, where the disk could not keep what is trained."""
    require_space(folder, SPACE)


def state_path(folder: Path, fingerprint: str) -> Path:
    """The file of the run with this fingerprint."""
    return folder / f"{fingerprint[:24]}.state"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state; raises StorageError where the disk will not take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: torch.save({"version": VERSION, **state}, temporary))
    others = sorted(path.parent.glob("*.state"), key=lambda p: p.stat().st_mtime)
    for old in others[:-KEPT]:
        old.unlink(missing_ok=True)


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read the state of the run with this fingerprint; None where there is none.

    Raises StorageError for a damaged file.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["version"] == VERSION and state["fingerprint"] == fingerprint
    except Exception as error:
        raise StorageError(
            f"The saved state {path} cannot be read ({error}). Delete it to start over."
        ) from error
    if not known:
        logger.warning("The saved state %s is of another version; starting over", path)
        return None
    return state
