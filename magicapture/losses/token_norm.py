"""The pull of the token vectors' norms towards that of ordinary words."""

from __future__ import annotations

import torch
from torch import Tensor

from ..loss import LOSSES, Loss
from .batch import Step
from .equations import token_norm


class TokenNorm(Loss):
    """(|v| - 0.4)^2, the mean over the token vectors (the release's phase 1)."""

    name = "token_norm"
    symbol, colour, release = "L_norm", "#b0a030", 0.01
    help = "Pull of each token vector's norm towards 0.4, that of ordinary words."
    once = True

    def __call__(self, batch: Step) -> Tensor:
        return torch.stack([token_norm(vector) for vector in batch.vectors.parameters()]).mean()


LOSSES.add(TokenNorm())
