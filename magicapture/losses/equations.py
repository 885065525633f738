"""The method's losses as pure functions; each returns one value a sample, so callers weight them.

All compute in float32. Equations are those of the paper (arXiv 2309.06895); docs/method.md says
where the authors' release differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Scaling, Weighting
from ..schedule import Schedule

FLAT = 1e-6
"""A map whose range is below this share of all attention counts as flat: it is rounding noise."""

WEAK = 5.0
"""SNR from which on `timestep_weights` counts errors less: fine detail is the last to matter."""

TEMPERATURE = 0.07
"""tau of `patch_contrast`: differences of cosines are divided by it."""

STRONG = 10.0
"""The most that `timestep_weights` multiplies errors under strong noise by."""


def masked_reconstruction(
    prediction: Tensor, target: Tensor, mask: Tensor, *, normalise_area: bool = True
) -> Tensor:
    """|| M * (target - prediction) ||^2 a sample (P eq. 4-6), as a mean over all cells: (B,).

    prediction and target (B,C,h,w); mask (B,1,h,w) in 0..1, weighting the squared error. With
    `normalise_area` the mean is over the mask's cells alone, so that a small face counts as much
    as a large one; an empty mask gives 0.
    """
    error = mask.float() * (prediction.float() - target.float()).square()
    loss = error.mean(dim=(1, 2, 3))
    if not normalise_area:
        return loss
    one_cell = 1 / mask[0].numel()
    return loss / mask.float().mean(dim=(1, 2, 3)).clamp_min(one_cell)


def timestep_weights(schedule: Schedule, timesteps: Tensor, weighting: Weighting) -> Tensor:
    """How much an error of the network's output counts at timesteps (B,): (B,).

    1 on average over the levels that are drawn. min_snr: an error in epsilon counts
    min(SNR, 5) / SNR (arXiv 2303.09556). v: that times 1 + 1 / SNR, by which an error in v is
    larger than one in epsilon, up to STRONG. none: 1, whatever is predicted.
    """
    if weighting == "none":
        return torch.ones(len(timesteps), device=timesteps.device)

    def weights(t: Tensor) -> Tensor:
        snr = schedule.snr(t).clamp_min(torch.finfo(torch.float32).tiny)
        counts = (WEAK / snr).clamp(max=1)
        if weighting == "v":
            counts = counts * (1 + 1 / snr).clamp(max=STRONG)
        return counts / schedule.error_ratio(t)

    return weights(timesteps) / weights(schedule.levels.typical()).mean()


def identity(embedding: Tensor, target: Tensor) -> Tensor:
    """1 - cos(embedding, target) (P eq. 7): (B,) in 0..2, for (B,D) against (B,D) or (D,)."""
    return 1 - F.cosine_similarity(embedding.float(), target.float(), dim=-1)


def scale_map(values: Tensor, scaling: Scaling) -> Tensor:
    """P's S: bring each attention map (R,h,w) to 0..1, its minimum and maximum as constants.

    minmax: (A - min A) / (max A - min A), blind to a uniform floor; max: A / max A, which sees
    it; mean: A / mean A, the mean with its gradient and values around 1: shrinking attention
    everywhere does not lower the loss, but a peak has no bound; share: A / sum A, likewise;
    none: A itself. A flat map (minmax) or an all but zero one (the others) stays near 0.
    """
    if scaling == "none":
        return values
    if scaling == "mean":
        return values / values.mean(dim=(-2, -1), keepdim=True).clamp_min(FLAT)
    if scaling == "share":
        return values / values.sum(dim=(-2, -1), keepdim=True).clamp_min(FLAT)
    constant = values.detach()
    low = constant.amin(dim=(-2, -1), keepdim=True) if scaling == "minmax" else 0.0
    high = constant.amax(dim=(-2, -1), keepdim=True)
    return (values - low) / (high - low).clamp_min(FLAT)


def refocusing(
    values: Tensor,
    inside: Tensor,
    scaling: Scaling = "minmax",
    map_size: int | None = None,
) -> Tensor:
    """|| S(A) * (1 - M) ||^2 a map (P eq. 8), as a mean over its cells: (R,).

    values: attention maps (R,h,w); inside: M (R,1,H,W) in 0..1 at any size. The mask is brought
    to the map's size by area; with `map_size` the map is first enlarged to that many cells a side.
    Attention inside the mask is left free. Under "share" it is `outside_share` instead.
    """
    if map_size is not None:
        size = (map_size, map_size)
        values = F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    if scaling == "share":
        return outside_share(values, inside)
    return (scale_map(values, scaling) * _outside(values, inside)).square().mean(dim=(-2, -1))


def outside_share(values: Tensor, inside: Tensor) -> Tensor:
    """sum A (1 - M) / sum A, the share of each map (R,h,w) outside M (R,1,H,W): (R,) in 0..1.

    Its gradient runs through both sums, so less attention everywhere does not lower it.
    """
    return leakage(values, inside, "none")


def leakage(values: Tensor, inside: Tensor, scaling: Scaling = "max") -> Tensor:
    """The share of each map's scaled attention (R,h,w) that lies outside M (R,1,H,W): (R,).

    0 is none, 1 is all; a uniform map gives the share of the picture outside the mask.
    """
    scaled = scale_map(values, scaling)
    outside = (scaled * _outside(values, inside)).sum(dim=(-2, -1))
    return outside / scaled.sum(dim=(-2, -1)).clamp_min(FLAT)


def self_similarity(keys: Tensor, source: Tensor, inside: Tensor) -> Tensor:
    """|| S(keys) - S(source) ||^2, S_ij = cos(k_i, k_j), as a mean over pairs of patches: (B,).

    keys and source (B,N,D): DINO's keys of the estimate and of the source photo. inside (B,N) in
    0..1: how much a patch shows the thing; a pair counts by the product, and none gives 0. Equal
    layouts give 0 whatever the colours (arXiv 2201.00424).
    """
    difference = _cosines(keys, keys) - _cosines(source, source)
    pairs = inside.float()[:, :, None] * inside.float()[:, None]
    return _mean_where(pairs, difference.square())


def patch_contrast(keys: Tensor, source: Tensor, inside: Tensor) -> Tensor:
    """- log of softmax_j(cos(k_i, s_j) / tau) at j = i, the mean over patches i inside: (B,).

    Each patch of the estimate must be more like the source's at its place than like the source's
    others (arXiv 2209.15264). Shapes as for `self_similarity`.
    """
    shares = (_cosines(keys, source) / TEMPERATURE).log_softmax(dim=-1)
    return _mean_where(inside.float(), -shares.diagonal(dim1=-2, dim2=-1))


def appearance(look: Tensor, references: Tensor) -> Tensor:
    """|| c - c_r ||^2 of DINO's [CLS], as a mean over its dimensions and the references: (B,).

    look (B,D) of the estimates, references (R,D) of the style's pictures.
    """
    return (look.float()[:, None] - references.float()[None]).square().mean(dim=(1, 2))


def token_norm(vectors: Tensor, target: float = 0.4) -> Tensor:
    """The mean squared distance of the vectors' (n,d) norms from `target`: ()."""
    return (vectors.float().norm(dim=-1) - target).square().mean()


def _outside(values: Tensor, inside: Tensor) -> Tensor:
    """1 - M at the maps' size (R,h,w)."""
    return 1 - F.interpolate(inside.float(), values.shape[-2:], mode="area")[:, 0]


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of each row of (B,N,D) with each of (B,M,D): (B,N,M)."""
    return F.normalize(one.float(), dim=-1) @ F.normalize(other.float(), dim=-1).mT


def _mean_where(weights: Tensor, values: Tensor) -> Tensor:
    """The weighted mean of each sample's values, 0 where nothing has weight: (B,)."""
    total = weights.flatten(1).sum(dim=1)
    return (weights * values).flatten(1).sum(dim=1) / total.clamp_min(FLAT)
