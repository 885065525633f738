"""A token's region, found from the UNet's own attention."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionCapture, LayerMaps, cross_attentions, select, self_attentions
from ..losses import FLAT, scale_map
from .focus import Focus, Rows
from .settings import RefocusGuidance

_WORD = " (word)"  # behind a token's name: the map of its class word; no token's name has it


class Recorder:
    """Records the tokens' maps in a pass of the UNet, and what finds their regions.

    factors: see `RefocusGuidance`, None for all; layers of the middle block are left out.
    spreading: record self-attention as well, for `regions`.
    """

    def __init__(self, unet: nn.Module, factors: Collection[int] | None, spreading: bool) -> None:
        cross = cross_attentions(unet)
        self._cross = AttentionCapture({name: cross[name] for name in select(unet)}, factors)
        self._self = AttentionCapture(self_attentions(unet)) if spreading else None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the pass run inside; its outputs stay bit-equal."""
        try:
            with self._cross.recording():
                if self._self is None:
                    yield
                else:
                    with self._self.recording():
                        yield
        except BaseException:
            self.forget()
            raise

    def maps(self, rows: Rows, size: tuple[int, int]) -> list[LayerMaps]:
        """The maps of every token, and of class words, that the rows of the pass have.

        size: height and width of the latents in cells.
        """
        return self._cross.maps([_positions(tokens) for tokens in rows], size)

    def regions(
        self,
        maps: Sequence[LayerMaps],
        rows: Rows,
        size: tuple[int, int],
        settings: RefocusGuidance,
    ) -> list[Tensor | None]:
        """For each row the subject's region (h,w), 0 or 1, at the latents' size.

        The mean of the maps of the row's subjects and their class words, averaged by
        self-attention over alike cells, blurred, and cut. None for a row without a subject, or
        whose maps are flat.
        """
        evidence = _evidence(maps, rows)
        if evidence is None:
            self.forget()
            return [None] * len(rows)
        if self._self is not None:
            evidence = self._self.spread(evidence, size)
        cut = region(evidence[:, 0], settings.smoothing, settings.cut)
        found = F.interpolate(cut[:, None], size, mode="nearest")[:, 0]
        return [f if bool(f.any()) else None for f in found]

    def forget(self) -> None:
        """Drop what was recorded."""
        self._cross.forget()
        if self._self is not None:
            self._self.forget()


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


def _positions(tokens: Sequence[Focus]) -> dict[str, tuple[int, ...]]:
    own = {token.name: token.columns for token in tokens}
    return own | {token.name + _WORD: token.word for token in tokens if token.word}


def _evidence(maps: Sequence[LayerMaps], rows: Rows) -> Tensor | None:
    """The subjects' maps (R,1,h,w) at the coarsest size: mean over layers, tokens and words."""
    subjects = {
        (row, name)
        for row, tokens in enumerate(rows)
        for token in tokens
        if token.role == "subject"
        for name in (token.name, token.name + _WORD)
    }
    if not maps or not subjects:
        return None
    coarsest = max(maps, key=lambda layer: layer.factor)
    height, width = coarsest.values.shape[-2:]
    total = coarsest.values.new_zeros(len(rows), 1, height, width)
    for layer in maps:
        own = [i for i, key in enumerate(layer.keys) if key in subjects]
        sized = F.interpolate(layer.values[own].detach()[:, None], (height, width), mode="area")
        # By peak: a class word is looked at more than a new token, and is not to hide it.
        peak = sized.amax(dim=(-2, -1), keepdim=True).clamp_min(FLAT)
        index = torch.tensor([layer.keys[i][0] for i in own], device=total.device)
        total.index_add_(0, index, sized / peak)
    return total
