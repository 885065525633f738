"""Checkpoints of a run: kept at their steps, scored, one marked, any taken."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import Adapter
from ..errors import InputError
from ..files import atomic_write
from ..training import Learned, Scored, Trainer, Warned
from ..training.loras import Loras
from .grid import grid
from .record import COLUMNS, Record, best_of, chosen_by, stops
from .scoring import Keep, Scorer
from .shelf import Shelf

SCHEMA = 1


class Checkpoints:
    """Keeps adapters of several steps of a run and scores them: `trainer.run(keeping=this)`.

    What was kept by an earlier part of the run is found again beside its state, and measured anew
    where it was measured by something else. Fits `training.Keeping`; after the run it holds no
    model. notes: what was measured by what, and what was left out or missed.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep, self.settings = keep, keep.settings
        self.notes: list[str] = []
        self._shelf = Shelf(None)
        self._records: dict[int, Record] = {}
        self._steps: list[int] = []
        self._scorer: Scorer | None = None

    # -- while the run goes on ------------------------------------------------------------------

    @contextmanager
    def following(self, trainer: Trainer) -> Iterator[None]:
        """Follow a trainer that is ready; raises InputError where its choice cannot be measured."""
        self._steps, self._records = self.settings.steps(trainer.recipe), {}
        state = trainer.keeper.path if trainer.keeper else None
        self._shelf = Shelf(state, lambda text: trainer.tell(Warned(text)))
        scorer = self._scorer = Scorer(self.keep, trainer)
        self.notes = [scorer.measured_by, *(f"Left out: {text}" for text in scorer.missing)]
        try:
            self._take_up(trainer, scorer)
            yield
        finally:
            self._scorer = None

    def stepped(self, trainer: Trainer) -> None:
        """Keep and score the step that is done, where it is one of those wanted."""
        if trainer.step in self._steps and trainer.step not in self._records:
            self._put(trainer, trainer.step, trainer.learned, trainer.adapter())

    @property
    def over(self) -> bool:
        """Whether the run should end here, by `stop_early`."""
        return self.settings.stop_early and stops(self.records, self.settings.choose)

    def _take_up(self, trainer: Trainer, scorer: Scorer) -> None:
        """Find what an earlier part of the run has kept, and say what it has not."""
        for step, (record, measured) in self._shelf.records(trainer.step).items():
            if measured == scorer.measured:
                self._tell(trainer, record)
            else:
                adapter = self._shelf.adapter(step)
                loras = Loras.of(adapter, trainer.backbone, trainer.recipe.lora)
                vectors = adapter.vectors().to(trainer.backbone.device)
                self._put(trainer, step, Learned(vectors, loras), None)
        self.stepped(trainer)  # the run may have been stopped while this one was scored
        missed = [s for s in self._steps if s < trainer.step and s not in self._records]
        if missed:
            trainer.tell(
                Warned(
                    f"Checkpoints of steps {', '.join(map(str, missed))} are missing: the run had "
                    "passed them before it was to keep any. Start over to have them."
                )
            )

    def _put(self, trainer: Trainer, step: int, learned: Learned, adapter: Adapter | None) -> None:
        """Score a step, and keep its adapter unless it is kept already."""
        assert self._scorer is not None
        record, pictures = self._scorer(step, learned)
        kept = record, self._scorer.measured
        if adapter is None:
            self._shelf.put_scores(kept, pictures)
        else:
            self._shelf.put(kept, adapter, pictures)
        self._tell(trainer, record)

    def _tell(self, trainer: Trainer, record: Record) -> None:
        record.worth(self.settings.choose)  # an error tells at once of a choice without a measure
        self._records[record.step] = record
        trainer.tell(Scored(record.step, record.scores, self.best.step))

    # -- afterwards -----------------------------------------------------------------------------

    @property
    def records(self) -> list[Record]:
        """What is kept, by step."""
        return [self._records[step] for step in sorted(self._records)]

    @property
    def best(self) -> Record:
        """The marked one (`record.best_of`); raises InputError where none is kept."""
        return best_of(self.records, self.settings.choose)

    def adapter(self, step: int | None = None) -> Adapter:
        """The adapter of a kept step, or of the marked one.

        Raises InputError for a step that is not kept, StorageError where its file is gone.
        """
        step = self.best.step if step is None else step
        if step not in self._records:
            known = ", ".join(str(record.step) for record in self.records)
            raise InputError(f"Step {step} is not kept; expected one of {known}.")
        return self._shelf.adapter(step)

    def pictures(self, step: int) -> Tensor:
        """The pictures (N,3,s,s) of a kept step; raises StorageError where they are gone."""
        return self._shelf.pictures(step)

    def grid(self) -> Tensor:
        """All kept steps as one picture (3,H,W), a row for each, the marked one in green."""
        shown = {record.step: self.pictures(record.step) for record in self.records}
        return grid(self.records, shown, self.best.step)

    def as_dict(self) -> dict[str, Any]:
        """The scores as JSON-ready data."""
        columns = self._columns
        return {
            "schema": SCHEMA,
            "choose": self.settings.choose,
            "chosen_by": chosen_by(self.records, self.settings.choose),
            "best": self.best.step,
            "notes": self.notes,
            "columns": {name: COLUMNS[name].help for name in columns},
            "checkpoints": [{**one.as_dict(), "means": one.scores} for one in self.records],
        }

    def write_csv(self, file: Path) -> None:
        """Write a line of means for each kept step; raises StorageError."""

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["step", *self._columns, "best"])
                for one in self.records:
                    cells = [one.scores.get(name, "") for name in self._columns]
                    writer.writerow([one.step, *cells, int(one.step == self.best.step)])

        atomic_write(file, write)

    @property
    def _columns(self) -> list[str]:
        return [name for name in COLUMNS if any(name in one.scores for one in self.records)]

    def __str__(self) -> str:
        lines, by = [], chosen_by(self.records, self.settings.choose) if self._records else ""
        for one in self.records:
            told = ", ".join(f"{name} {value:.2f}" for name, value in one.scores.items())
            best = f" (best by {by})" if one.step == self.best.step else ""
            lines.append(f"Step {one.step}{best}: {told}.")
        return "\n".join([*lines, *self.notes])
