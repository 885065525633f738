"""Refocusing around the passes of a network, whatever its host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import Attention, Network, Run, Size, cross_attentions
from .bias import holding
from .focus import Rows
from .gradient import region_loss
from .regions import Finder, all_maps, capture_of
from .settings import RefocusGuidance


class Refocuser:
    """Holds tokens to their regions while one network draws.

    settings: see `RefocusGuidance`. Where a pass comes without a region, the region is found from
    the attention of the pass before it, and before there is any the pass runs free.

    held: whether any layer's attention was biased so far. blind: whether a pass showed none.
    """

    def __init__(self, network: Network, settings: RefocusGuidance) -> None:
        self.settings = settings
        self._network = network
        self._cross = list(cross_attentions(network.module))
        self._finder = Finder(network, settings)
        self._capture = capture_of(network)
        self._last: dict[Size, tuple[str, Size | None]] = {}  # last layer mapped, by a pass's size
        self.held = self.blind = False

    @contextmanager
    def holding(
        self,
        rows: Rows,
        regions: Sequence[Tensor | None],
        size: Size,
        found: Callable[[list[Tensor | None]], None] | None = None,
    ) -> Iterator[None]:
        """Bias the tokens' attention in the one pass of the UNet run inside.

        regions: of each row, the subject's (h,w) at the latents' size, or None to leave the row
        free. found: is told the regions that the pass's own attention shows, if it shows any.
        """
        if not any(rows):
            yield
            return
        if found is not None:
            with self._biasing(rows, regions, size), self._finder.recording():  # sees no bias
                yield
            if not self._finder.has_seen(size):
                self.blind = True
                return
            with torch.no_grad():
                found(self._finder.regions(rows, size))
        else:
            with self._biasing(rows, regions, size):
                yield

    @contextmanager
    def _biasing(self, rows: Rows, regions: Sequence[Tensor | None], size: Size) -> Iterator[None]:
        held = [
            () if region is None else tokens for tokens, region in zip(rows, regions, strict=True)
        ]
        if self.settings.bias == 0 or not any(held):
            yield
            return
        bias = holding(held, _stacked(regions, size), self.settings.bias)

        def tap(attention: Attention, run: Run) -> Tensor:
            self.held = True
            return bias(attention, run)

        with self._network.tapped(tap, self._cross):
            yield

    def loss(
        self,
        run: Callable[[], object],
        rows: Rows,
        regions: Sequence[Tensor | None] | None,
        size: Size,
    ) -> Tensor:
        """The refocusing loss of the pass that `run` makes, one a row (R,), differentiable.

        regions: as for `holding`; None finds them from this very pass. The pass may end early,
        so what `run` returns is of no use.
        """
        # A recomputed block must not be left by an exception: torch would go on recording it.
        last = None if self.settings.save_memory else self._last.get(size)
        if last is None or not self._passed(run, regions is None, last):
            self._passed(run, regions is None, None)
        sizes = {site: self._capture.seen(site).size for site in self._capture.recorded()}
        self.blind = self.blind or not any(sizes.values())
        maps = all_maps(self._capture, rows, size, self.settings)
        if maps:
            self._last[size] = maps[-1].layer, sizes[maps[-1].layer]
        if regions is None:
            with torch.no_grad():
                regions = self._finder.regions(rows, size)
        device = maps[0].values.device if maps else None
        inside = _stacked(regions, size, device)
        loss = region_loss(maps, rows, inside, self.settings.measure)
        held = torch.tensor([r is not None for r in regions], device=loss.device)
        return torch.where(held, loss, 0)

    def _passed(
        self, run: Callable[[], object], finding: bool, last: tuple[str, Size | None] | None
    ) -> bool:
        """Record a pass up to its last layer that is mapped; whether that has the size it had.

        Deep shrink changes the sizes of layers in mid-sampling, and so which of them are mapped.
        """
        found = self._finder.recording() if finding else nullcontext()
        with self._capture.recording(until=last and last[0]), found:  # which is called first
            run()
        if last is None:
            return True
        site, size = last
        return self._capture.has(site) and self._capture.seen(site).size == size


def fit(mask: Tensor, size: Size) -> Tensor:
    """A region (B,1,H,W) brought to the latents' size (h,w), by area: (B,1,h,w)."""
    return F.interpolate(mask.float(), size, mode="area").clamp(0, 1)


def _stacked(
    regions: Sequence[Tensor | None], size: Size, device: torch.device | None = None
) -> Tensor:
    """(R,1,h,w), all 1 for a row left free. device: of the result where no row has a region."""
    device = next((r.device for r in regions if r is not None), device)
    free = torch.ones(size, device=device)
    return torch.stack([free if region is None else region for region in regions])[:, None]
