"""The identity loss (P eq. 7) on the rows that are clean enough to show a face."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..config import Recipe
from ..loss import LOSSES, Loss, Need
from .batch import Batch


class Identity(Loss):
    """L_id: 1 - cos of the face that x0 shows and the person's (`magicapture.identity`)."""

    name = "identity"
    symbol, colour, paper, release = "L_id", "#c93c5b", 1.0, 0.25
    help = "Identity, L_id: the face drawn must be the person's, by a face recognition model."
    needs: ClassVar[frozenset[Need]] = frozenset({"face model"})

    def tasks(self, recipe: Recipe) -> tuple[str, ...]:
        return recipe.identity.tasks

    def weight(self, batch: Batch) -> float:
        """The phase's weight, shared out to the tasks."""
        return super().weight(batch) / len(batch.recipe.identity.tasks)

    def __call__(self, batch: Batch) -> Tensor:
        settings = batch.recipe.identity
        limit = batch.schedule.levels.limit(batch.recipe.snr(settings.min_snr))
        chosen = [
            i
            for i, row in enumerate(batch.rows)
            if row.landmarks is not None
            and row.task in settings.tasks
            and row.timestep < limit
            and row.reconstruct != settings.separate_pass
        ]
        if not chosen or batch.identity is None:
            return batch.prediction.new_zeros(0)
        landmarks = torch.cat([batch.rows[i].landmarks for i in chosen])  # type: ignore[misc]
        x0 = batch.x0[chosen]
        return batch.identity(x0, landmarks, batch.schedule.signal(batch.timesteps[chosen]))


LOSSES.add(Identity())
