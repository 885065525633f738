"""Where each concept is drawn, by the model's attention, and guidance scaled by it (S-CFG)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_BESIDE = math.exp(-1)  # a Gaussian with a variance of half a cell, one cell beside its middle
_LOWEST, _HIGHEST = 0.8, 15.0  # of a guidance rate, and of rate times guidance


def spread(self_map: Tensor, cross_map: Tensor) -> Tensor:
    """(S C + 3 S^2 C) / 4: cross-attention carried along self-attention to alike pixels.

    self_map: (B,N,N). cross_map: (B,N,L). Rows of both sum to 1, and so do the result's.
    """
    once = self_map @ cross_map
    return (once + 3 * (self_map @ once)) / 4


def smooth(maps: Tensor) -> Tensor:
    """Maps (B,K,h,w) under a 3x3 Gaussian, 0.212, 0.576, 0.212 each way, mirrored at the edges."""
    line = torch.tensor([_BESIDE, 1.0, _BESIDE], dtype=maps.dtype, device=maps.device)
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(maps.shape[1], 1, 3, 3)
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"  # one cell has none to mirror
    return F.conv2d(F.pad(maps, (1, 1, 1, 1), mode=mode), kernel, groups=maps.shape[1])


def aggregate(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The mean of token maps of several layers, each token's with a mean of 1.

    maps: (B,L,h,w) of each layer, of any sizes. Returns (B,L,*size).
    """
    total = torch.zeros(())
    for one in maps:
        sized = smooth(F.interpolate(one, size, mode="bilinear"))
        total = total.to(sized) + sized / sized.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    return total / len(maps)


def assign(tokens: Tensor, columns: Sequence[Sequence[int]], others: float) -> Tensor:
    """The regions (B,K,h,w) bool of K concepts: each pixel goes to its strongest token.

    tokens: (B,L,h,w) from `aggregate`. columns: of each concept's tokens, in no two concepts.
    others: what the map of a token that is no concept's is multiplied by. A region may be empty.
    """
    owner = torch.full((tokens.shape[1],), -1, device=tokens.device)
    for concept, own in enumerate(columns):
        owner[list(own)] = concept
    scale = torch.where(owner < 0, others, 1.0)
    winner = owner[(tokens * scale[:, None, None]).argmax(dim=1)]
    concepts = torch.arange(len(columns), device=tokens.device)
    return winner[:, None] == concepts[:, None, None]


def foreground(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Where something is drawn, (B,1,h,w) bool, from the maps of the unconditional rows.

    There the first token, which stands for nothing in particular, does not hold more attention
    than all others together; in each layer both maps are scaled to a mean of 1.

    maps: (B,L,h,w) of each layer, attention as it is, 1 in all over the L tokens.
    """
    start_and_rest = [torch.cat([m[:, :1], m[:, 1:].sum(1, keepdim=True)], dim=1) for m in maps]
    start, rest = aggregate(start_and_rest, size).chunk(2, dim=1)
    return start < rest


def at_size(regions: Tensor, size: tuple[int, int]) -> Tensor:
    """Regions (B,K,h,w) bool at another size; disjoint ones stay disjoint."""
    return F.interpolate(regions.float(), size, mode="nearest-exact") > 0.5


def guidance_rates(
    difference: Tensor, regions: Tensor, foreground: Tensor | None, guidance: float
) -> Tensor:
    """The factor (B,1,h,w) of classifier-free guidance at each latent cell: none is drawn fainter.

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
    return (1 + smooth(painted - 1)).to(difference.dtype)  # a rate of 1 everywhere stays exactly 1


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Means of (B,1,h,w) over each of K places (B,K,h,w): (B,K,1,1)."""
    weight = where.float()
    total = (values * weight).sum(dim=(-2, -1), keepdim=True)
    return (total / weight.sum(dim=(-2, -1), keepdim=True).clamp_min(1)).clamp_min(1e-8)
