"""A token's region, found from the UNet's own attention."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import (
    AttentionCapture,
    LayerMaps,
    Network,
    select,
    select_own,
)
from ..losses.equations import FLAT, scale_map
from .focus import Focus, Rows
from .settings import RefocusGuidance

_WORD = " (word)"  # behind a token's name: the map of its class word; no token's name has it


def all_maps(
    capture: AttentionCapture,
    rows: Rows,
    size: tuple[int, int],
    settings: RefocusGuidance | None = None,
) -> list[LayerMaps]:
    """The maps of every token that the rows of a captured pass have.

    size: height and width of the latents in cells. settings: which of the captured layers to map;
    None maps them all. A pass that shows no attention, as where a cache skips it, has no maps.
    """
    positions = [{token.name: token.columns for token in tokens} for tokens in rows]
    known = capture.recorded_factors(size)
    if not known:
        return []
    factors = None if settings is None else _factors(settings, known, size)
    return capture.maps(positions, size, factors)


def capture_of(network: Network) -> AttentionCapture:
    """A capture of the cross-attention whose maps refocusing looks at: all but the middle block."""
    return AttentionCapture(network, select(network.module))


class Finder:
    """Finds the subjects' regions from a pass of the UNet.

    It looks at one resolution, of those it may the one nearest to 16x16, and there at the last
    transformer block of every stack: enough for a region, and a small part of a pass.
    """

    def __init__(self, network: Network, settings: RefocusGuidance) -> None:
        self._settings = settings
        self._cross = AttentionCapture(network, select(network.module))
        self._self = AttentionCapture(network, select_own(network.module))

    def has_seen(self, size: tuple[int, int]) -> bool:
        """Whether the recorded pass shows any attention; one that a cache skips shows none."""
        return bool(self._cross.recorded_factors(size))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the pass run inside; its outputs stay bit-equal."""
        with self._cross.recording(), self._self.recording():
            yield

    def regions(self, rows: Rows, size: tuple[int, int]) -> list[Tensor | None]:
        """For each row of the pass the subject's region (h,w), 0 or 1, at the latents' size.

        The mean of the maps of the row's subjects and their class words, averaged by
        self-attention over alike cells, blurred, and cut. None for a row without a subject, or
        whose maps are flat, and for all of a pass that shows no attention.
        """
        if not self.has_seen(size):
            return [None] * len(rows)
        factors = _factors(self._settings, self._cross.recorded_factors(size), size)
        nearest = min(factors, key=lambda f: abs(math.log(_cells(f, size) / 16**2)))
        positions = [_evidence_columns(tokens) for tokens in rows]
        evidence = _evidence(self._cross.maps(positions, size, {nearest}), len(rows))
        if evidence is None:
            self._self.forget()
            return [None] * len(rows)
        spread = self._self.spread(evidence)[:, 0]
        cut = region(spread, self._settings.smoothing, self._settings.cut)
        found = F.interpolate(cut[:, None], size, mode="nearest")[:, 0]
        return [f if bool(f.any()) else None for f in found]


def region(values: Tensor, smoothing: float, cut: float) -> Tensor:
    """1 where a blurred map (R,h,w), scaled to 0..1 by its lowest and highest, is at least `cut`.

    A flat map gives no region: 0 everywhere.
    """
    return (scale_map(blur(values, smoothing), "minmax") >= cut).float()


def blur(values: Tensor, sigma: float) -> Tensor:
    """Maps (R,h,w) under a Gaussian of `sigma` cells, borders repeated; 0 leaves them."""
    if sigma == 0:
        return values
    reach = min(max(1, round(3 * sigma)), *(side - 1 for side in values.shape[-2:]))
    at = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = (-0.5 * (at / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(values[:, None], (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]


def _factors(
    settings: RefocusGuidance, known: Collection[int], size: tuple[int, int]
) -> Collection[int]:
    """The layers to look at, of those known by their factors: as set, or with usual maps.

    Where the UNet has none of those set, they come back for `AttentionCapture` to refuse.
    """
    if settings.factors is not None:
        return set(settings.factors) & set(known) or settings.factors
    return {f for f in known if 8**2 <= _cells(f, size) <= 32**2} or known


def _cells(factor: int, size: tuple[int, int]) -> int:
    return math.ceil(size[0] / factor) * math.ceil(size[1] / factor)


def _evidence_columns(tokens: Sequence[Focus]) -> dict[str, tuple[int, ...]]:
    """The columns of each subject, and under a name of their own those of its class word."""
    subjects = [token for token in tokens if token.role == "subject"]
    own = {token.name: token.columns for token in subjects}
    return own | {token.name + _WORD: token.word for token in subjects if token.word}


def _evidence(maps: Sequence[LayerMaps], rows: int) -> Tensor | None:
    """Maps of one size, each by its peak, summed for each row: (R,1,h,w); None without any."""
    if not maps:
        return None
    total = maps[0].values.new_zeros(rows, 1, *maps[0].values.shape[-2:])
    for layer in maps:
        values = layer.values.detach()[:, None]
        # By peak: a class word is looked at more than a new token, and is not to hide it.
        peak = values.amax(dim=(-2, -1), keepdim=True).clamp_min(FLAT)
        index = torch.tensor([row for row, _ in layer.keys], device=total.device)
        total.index_add_(0, index, values / peak)
    return total
