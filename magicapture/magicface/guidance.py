"""Region-scaled guidance: no region is pushed towards the prompt less than another (S-CFG)."""

from __future__ import annotations

import torch
from torch import Tensor

from .regions import smooth

_LOWEST, _HIGHEST = 0.8, 15.0  # of a rate, and of rate times guidance


def guidance_rates(
    difference: Tensor, regions: Tensor, foreground: Tensor | None, guidance: float
) -> Tensor:
    """The factor (B,1,h,w) of classifier-free guidance at each latent cell.

    n = |eps_c - eps_u|; on region k the rate is mean(n on F) / mean(n on k), within 0.8 and
    15 / guidance, then smoothed. What no concept holds is one more region.

    difference: (B,C,h,w), conditional minus unconditional prediction, in any scale. regions:
    (B,K,h,w) bool. foreground: F, (B,1,h,w) bool; None takes the concepts' regions together.
    """
    norm = difference.float().norm(dim=1, keepdim=True)
    held = regions.any(dim=1, keepdim=True)
    foreground = held if foreground is None else foreground
    parts = torch.cat([regions, ~held], dim=1)
    aim = _mean(norm, foreground)
    rates = torch.where(foreground.any(dim=(-2, -1), keepdim=True), aim / _mean(norm, parts), 1.0)
    painted = (rates.clamp(_LOWEST, max(_HIGHEST / guidance, 1.0)) * parts).sum(1, keepdim=True)
    return smooth(painted).to(difference.dtype)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Means of (B,1,h,w) over each of K places (B,K,h,w): (B,K,1,1)."""
    weight = where.float()
    total = (values * weight).sum(dim=(-2, -1), keepdim=True)
    return (total / weight.sum(dim=(-2, -1), keepdim=True).clamp_min(1)).clamp_min(1e-8)
