"""Attention Refocusing (P eq. 8) on the tokens of a step's rows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..loss import LOSSES, Loss, Need
from .batch import Batch
from .equations import refocusing


class Attention(Loss):
    """L_attn: || S(A_v) * (1 - M_v) ||^2, the mean over a row's tokens and the layers' maps."""

    name = "attention"
    symbol, colour, paper, release = "L_attn", "#8457c4", 2.5, 2.5
    help = "Attention Refocusing, L_attn: each token looks at its own part of the picture."
    needs: ClassVar[frozenset[Need]] = frozenset({"attention", "face masks"})

    def __call__(self, batch: Batch) -> Tensor:
        layers, settings = batch.attention, batch.recipe.refocus
        keys = layers[0].keys if layers else ()
        acting = [row.reconstruct and row.task in settings.tasks for row in batch.rows]
        if not any(acting[row] for row, _ in keys):
            return batch.prediction.new_zeros(0)
        inside = torch.cat([batch.region(row, name) for row, name in keys])
        per_key = torch.stack(
            [
                refocusing(
                    layer.values, inside.to(layer.values), settings.scaling, settings.map_size
                )
                for layer in layers
            ]
        ).mean(0)
        rows = sorted({row for row, _ in keys if acting[row]})
        return torch.stack(
            [per_key[[i for i, (r, _) in enumerate(keys) if r == row]].mean() for row in rows]
        )


LOSSES.add(Attention())
