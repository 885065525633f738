"""Regions of concepts from one pass of a UNet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import AttentionCapture, Network, last_blocks, self_attentions
from .regions import aggregate, assign, at_size, foreground, spread

_LARGEST_MAP = 48 * 48  # queries of a layer that is mapped; a map has their square


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch draw the prompt, and which the negative one; how many do neither."""

    conditional: Sequence[int]
    unconditional: Sequence[int] = ()
    others: int = 0

    def __len__(self) -> int:
        return len(self.conditional) + len(self.unconditional) + self.others


@dataclass(frozen=True, eq=False)
class Seen:
    """What a pass showed: regions (B,K,h,w) bool, and the foreground (B,1,h,w) bool or None."""

    regions: Tensor
    foreground: Tensor | None

    def first(self, rows: int) -> Seen:
        """What the first rows showed."""
        ground = None if self.foreground is None else self.foreground[:rows]
        return Seen(self.regions[:rows], ground)


class Segmenter:
    """Finds where the K concepts of a prompt are drawn.

    columns: of each concept's words in the prompt's context, which is `length` long. others: weight
    of words that belong to no concept. to_foreground: cut the regions to it.
    """

    def __init__(
        self,
        network: Network,
        columns: Sequence[Sequence[int]],
        length: int,
        others: float,
        *,
        to_foreground: bool = False,
    ) -> None:
        unet = network.module
        blocks = [f"{block}." for block in last_blocks(unet, middle=True)]
        own = self_attentions(unet)
        self._blocks = [block for block in blocks if f"{block}attn1" in own]
        names = [block + layer for block in self._blocks for layer in ("attn1", "attn2")]
        self._capture = AttentionCapture(network, names)
        self._columns, self._length, self._others = columns, length, others
        self._to_foreground = to_foreground
        self._foreground: Tensor | None = None
        self._mapped: dict[str, Tensor] = {}  # of the pass that is recorded, by block

    @property
    def blind(self) -> bool:
        """Whether the pass, now that it is over, showed nothing: as one that a cache skips."""
        return not self._maps()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the pass run inside, for `look` in the same scope; its outputs stay bit-equal."""
        self._mapped.clear()
        try:
            with self._capture.recording():
                yield
        finally:
            self._mapped.clear()
            self._capture.forget()

    def look(self, rows: Rows) -> Seen | None:
        """What the layers recorded so far show; None where no row has the prompt, or none shows.

        The foreground is that of the negative rows of this pass, or of the last that had any:
        ComfyUI runs them by themselves where memory is short. Asked again in the same pass, it
        maps only the layers that are new.
        """
        maps = self._maps()
        if not maps:
            return None
        finest = max(((one.shape[-2], one.shape[-1]) for one in maps), key=math.prod)
        if rows.unconditional:
            self._foreground = foreground([m[list(rows.unconditional)] for m in maps], finest)
        if not rows.conditional:
            return None
        tokens = aggregate([m[list(rows.conditional)] for m in maps], finest)
        regions = assign(tokens, self._columns, self._others)
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

    def _maps(self) -> list[Tensor]:
        """The maps (B,L,h,w) of a pass's rows, of each block mapped, at its own size."""
        for block in self._blocks:
            own, cross = f"{block}attn1", f"{block}attn2"
            if block in self._mapped or not (self._capture.has(own) and self._capture.has(cross)):
                continue  # mapped already, or the pass has not come here yet
            size = self._capture.seen(own).size
            if size is not None and math.prod(size) <= _LARGEST_MAP:
                self._mapped[block] = self._token_map(own, cross).mT.unflatten(-1, size)
        return list(self._mapped.values())

    def _token_map(self, self_attention: str, cross_attention: str) -> Tensor:
        """One block's cross-attention (B,N,L), spread along its self-attention."""
        own = self._capture.seen(self_attention).scores()
        cross = self._capture.seen(cross_attention).scores()
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
