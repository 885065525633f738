"""Refocusing by gradient: the latents move until the tokens' attention is inside its region."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..attention import LayerMaps
from ..losses.equations import refocusing
from .focus import Rows
from .settings import Measure


def descend(
    latents: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    step: float,
    iterations: int = 1,
    threshold: float = 0.0,
) -> Tensor:
    """z <- z - step * rms(z) * g / rms(g), g = dL/dz, while a row's loss is above the threshold.

    latents (B,...); loss_of gives one loss a row (B,), differentiable in them. The move's length
    is a share of the latents' own, so it means the same in every model and parametrisation.
    Returns `latents` itself when no row moved.
    """
    for _ in range(iterations):
        with torch.inference_mode(False), torch.enable_grad():
            at = latents.detach().clone().requires_grad_()
            loss = loss_of(at)
            if not loss.requires_grad or not bool((loss > threshold).any()):
                break
            (slope,) = torch.autograd.grad(loss.sum(), at)
        move = step * _rms(latents) / _rms(slope).clamp_min(1e-20) * slope
        active = (loss.detach() > threshold).view(-1, *[1] * (latents.ndim - 1))
        latents = latents - torch.where(active, move, 0)
    return latents


def region_loss(
    maps: Sequence[LayerMaps], rows: Rows, regions: Tensor, measure: Measure = "share"
) -> Tensor:
    """Each row's refocusing loss, the mean over its tokens and the layers: (R,) in 0..1.

    measure: "share" is the attention outside the region as a share of all the token gets; the
    others are the loss of training (P eq. 8) under that scaling. Its scaling has the map's peak
    as a constant, so that a descent lowers the peak as well and the loss hardly falls; the share
    falls only if attention moves inside.

    maps: as `all_maps` gives them. regions: the subject's (R,1,h,w). A row without tokens has 0.
    """
    roles = {(r, token.name): token.role for r, tokens in enumerate(rows) for token in tokens}
    total = torch.zeros(len(rows), device=regions.device)
    for layer in maps:
        index = torch.tensor([row for row, _ in layer.keys], device=regions.device)
        style = torch.tensor([roles[key] == "style" for key in layer.keys], device=regions.device)
        inside = torch.where(style.view(-1, 1, 1, 1), 1 - regions[index], regions[index])
        total = total.index_add(0, index, refocusing(layer.values, inside, measure))
    counts = torch.tensor([max(1, len(tokens)) for tokens in rows], device=regions.device)
    return total / (counts * max(1, len(maps)))


def _rms(values: Tensor) -> Tensor:
    """Root of the mean square of each row: (B,1,...)."""
    return values.float().square().mean(tuple(range(1, values.ndim)), keepdim=True).sqrt()
