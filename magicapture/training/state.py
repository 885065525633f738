"""The state of a run on disk, from which it goes on as if it had never stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, StorageError
from ..files import atomic_write

logger = logging.getLogger(__name__)

VERSION = 1


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state; raises StorageError where the disk will not take it."""
    atomic_write(path, lambda temporary: torch.save({"version": VERSION, **state}, temporary))


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read the state of the run with this fingerprint; None where there is no file.

    Raises StorageError for a damaged file, InputError for the state of another run.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version, found = state["version"], state["fingerprint"]
    except Exception as error:
        raise StorageError(
            f"The saved state {path} cannot be read ({error}). Delete it to start over."
        ) from error
    if version != VERSION or found != fingerprint:
        raise InputError(
            f"The saved state {path} belongs to another run: photos, recipe, concepts, seed or "
            "base model differ. Use the same ones to resume, or delete it to start over."
        )
    return state
