"""Where the adapters of a run's kept steps lie: beside its saved state, else in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import Adapter, load_adapter, save_adapter
from ..errors import MagiCaptureError, StorageError
from ..files import atomic_write
from ..images import read_picture, to_pil
from ..training.state import kept_folder
from .record import Record

logger = logging.getLogger(__name__)

Kept = tuple[Record, str]
"""A record, and what it was measured by (`Scorer.measured`)."""


class Shelf:
    """The kept steps of one run: adapter, pictures and scores of each.

    state: the run's state file, beside which they lie; None keeps them in memory, as does a disk
    that takes no more, of which `warn` is told.
    """

    def __init__(self, state: Path | None, warn: Callable[[str], None] = logger.warning) -> None:
        self.folder = None if state is None else kept_folder(state)
        self.warn = warn
        self._memory: dict[int, tuple[Adapter, Tensor]] = {}

    def records(self, up_to: int) -> dict[int, Kept]:
        """What is kept of steps up to one, in their order; what is kept beyond it is removed."""
        found: dict[int, Kept] = {}
        for file in sorted(self.folder.glob("*.json")) if self.folder else ():
            data = _read(file)
            if data is None or data["record"]["step"] > up_to:
                for part in self.folder.glob(f"{file.stem}.*"):  # type: ignore[union-attr]
                    part.unlink(missing_ok=True)
            else:
                record = Record(**data["record"])
                found[record.step] = record, data["measured"]
        return found

    def put(self, kept: Kept, adapter: Adapter, pictures: Tensor) -> None:
        """Keep a step; pictures (N,3,s,s) in 0..1, which are to be shown. The scores come last."""
        record, _ = kept
        try:
            if self.folder is None:
                raise StorageError("there is no folder")
            for part in ("safetensors", "json"):
                self._file(record.step, part).unlink(missing_ok=True)
            name = self._file(record.step, "").stem
            save_adapter(adapter, self.folder, self.folder, name, bundle=True)
            self.put_scores(kept, pictures)
        except (StorageError, OSError) as error:
            self._memory[record.step] = adapter, pictures
            if self.folder is not None:
                self.warn(
                    f"The checkpoint of step {record.step} cannot be saved to {self.folder} "
                    f"({error}). It is kept in memory until the program ends."
                )

    def put_scores(self, kept: Kept, pictures: Tensor) -> None:
        """Write a step's pictures and then its scores anew; raises StorageError."""
        record, measured = kept
        if record.step in self._memory:
            self._memory[record.step] = self._memory[record.step][0], pictures
            return
        strip = to_pil(pictures.movedim(0, 2).flatten(2))
        atomic_write(self._file(record.step, "png"), lambda file: strip.save(file, format="PNG"))
        text = json.dumps({"measured": measured, "record": record.as_dict()})
        atomic_write(self._file(record.step, "json"), lambda f: f.write_text(text, "utf-8"))

    def adapter(self, step: int) -> Adapter:
        """The adapter of a kept step; raises StorageError where its file is gone."""
        if step in self._memory:
            return self._memory[step][0]
        try:
            return load_adapter(self._file(step, "safetensors"))
        except MagiCaptureError as error:
            raise StorageError(
                f"The checkpoint of step {step} cannot be read ({error}). Train again with the "
                "same inputs, starting over."
            ) from error

    def pictures(self, step: int) -> Tensor:
        """The pictures (N,3,s,s) of a kept step; raises StorageError where they are gone."""
        if step in self._memory:
            return self._memory[step][1]
        strip = read_picture(self._file(step, "png")).image
        return strip.unflatten(2, (-1, strip.shape[1])).movedim(2, 0)

    def _file(self, step: int, ending: str) -> Path:
        assert self.folder is not None
        return self.folder / (f"{step:07}.{ending}" if ending else f"{step:07}")


def _read(file: Path) -> dict[str, Any] | None:
    """A record's file; None where it is damaged, or a part of the checkpoint is missing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        data: dict[str, Any] = json.loads(file.read_bytes())
        Record(**data["record"])
        whole = isinstance(data["measured"], str) and isinstance(data["record"]["step"], int)
        parts = (file.with_suffix(ending) for ending in (".safetensors", ".png"))
        if whole and all(part.is_file() for part in parts):
            return data
    return None
