"""Regions of concepts from one pass of a UNet, diffusers' or ComfyUI's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import head_mean, map_size
from .layers import Pair, mapped_layers
from .regions import aggregate, assign, at_size, foreground, spread
from .taps import Found, recorded

_LARGEST_MAP = 48 * 48  # queries of a layer that is mapped; a map has their square


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch draw the prompt, and which the negative one."""

    conditional: Sequence[int]
    unconditional: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.conditional) + len(self.unconditional)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a pass showed: regions (B,K,h,w) bool, and the foreground (B,1,h,w) bool or None."""

    regions: Tensor
    foreground: Tensor | None


class Segmenter:
    """Finds where the K concepts of a prompt are drawn.

    columns: of each concept's words in the prompt's context, which is `length` long. others: what
    a word that is no concept's counts. to_foreground: cut the regions to it.
    """

    def __init__(
        self,
        unet: nn.Module,
        columns: Sequence[Sequence[int]],
        length: int,
        others: float,
        *,
        to_foreground: bool = False,
    ) -> None:
        self.pairs = mapped_layers(unet)
        self._layers = {name: unet.get_submodule(name) for pair in self.pairs for name in pair}
        self._columns, self._length, self._others = columns, length, others
        self._to_foreground = to_foreground
        self._foreground: Tensor | None = None
        self._mapped: dict[Pair, Tensor] = {}  # of the pass that is recorded

    @contextmanager
    def recording(self) -> Iterator[Found]:
        """Record the pass run inside; its outputs stay bit-equal."""
        self._mapped.clear()
        try:
            with recorded(self._layers, "to_q", "to_k") as found:
                yield found
        finally:
            self._mapped.clear()

    def look(self, found: Found, rows: Rows, size: tuple[int, int]) -> Seen | None:
        """What the layers recorded so far show; None where no row has the prompt.

        size: of the latents in cells. The foreground is that of the negative rows of this pass, or
        of the last that had any: ComfyUI runs them by themselves where memory is short. Asked
        again in the same pass, it maps only the layers that are new.
        """
        tokens = self._tokens(found, size)
        if rows.unconditional:
            self._foreground = foreground(tokens[list(rows.unconditional)])
        if not rows.conditional:
            return None
        regions = assign(tokens[list(rows.conditional)], self._columns, self._others)
        ground = self._fitting_foreground(regions)
        if ground is not None and self._to_foreground:
            regions = regions & ground
        return Seen(regions, ground)

    def _fitting_foreground(self, regions: Tensor) -> Tensor | None:
        known = self._foreground
        if known is None or len(regions) % len(known):
            return None
        repeated = known.repeat(len(regions) // len(known), 1, 1, 1)
        return at_size(repeated, (regions.shape[-2], regions.shape[-1]))

    def _tokens(self, found: Found, size: tuple[int, int]) -> Tensor:
        """The aggregated maps (B,L,h,w) of a pass's rows, at the finest mapped layer's size."""
        for pair in self.pairs:
            own, cross = found[pair.self_attention], found[pair.cross_attention]
            if pair in self._mapped or len(own) < 2 or len(cross) < 2:
                continue  # mapped already, or the pass has not come here yet
            if own["to_q"].shape[1] <= _LARGEST_MAP:
                _, height, width = map_size(own["to_q"].shape[1], size)
                token_map = self._token_map(pair, found)
                self._mapped[pair] = token_map.mT.unflatten(-1, (height, width))
        maps = list(self._mapped.values())
        finest = max(maps, key=lambda one: one.shape[-1] * one.shape[-2])
        return aggregate(maps, (finest.shape[-2], finest.shape[-1]))

    def _token_map(self, pair: Pair, found: Found) -> Tensor:
        """One block's cross-attention (B,N,L), spread along its self-attention."""
        own, cross = (
            head_mean(
                found[name]["to_q"],
                found[name]["to_k"],
                int(self._layers[name].heads),  # type: ignore[arg-type]
            )
            for name in pair
        )
        if cross.shape[-1] % self._length == 0:  # ComfyUI repeats a prompt shorter than the other
            cross = cross.unflatten(-1, (-1, self._length)).sum(dim=-2)
        return spread(own, cross)


def areas(seen: Seen) -> Tensor:
    """The share of the picture that each region covers: (B,K)."""
    return seen.regions.float().mean(dim=(-2, -1))


def region_masks(seen: Seen, size: tuple[int, int]) -> Tensor:
    """The regions as masks (B*K,1,H,W) of a picture's size, picture by picture."""
    return at_size(seen.regions, size).flatten(0, 1)[:, None].float()


def outlined(images: Tensor, seen: Seen, strength: float = 0.5) -> Tensor:
    """Images (B,3,H,W) in 0..1 with each concept's region tinted in a colour of its own."""
    regions = at_size(seen.regions.to(images.device), (images.shape[-2], images.shape[-1]))
    shown = images
    for concept, colour in enumerate(colours(regions.shape[1])):
        tint = colour.to(images)[:, None, None]
        shown = torch.where(regions[:, concept : concept + 1], images.lerp(tint, strength), shown)
    return shown


def colours(count: int) -> Tensor:
    """`count` colours (count,3) in 0..1, evenly around the circle of hues."""
    hue = torch.arange(count)[:, None] / max(count, 1) + torch.tensor([0, 2 / 3, 1 / 3])
    return ((6 * (hue % 1) - 3).abs() - 1).clamp(0, 1)
