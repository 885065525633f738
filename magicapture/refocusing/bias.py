"""Refocusing without a gradient: an additive bias on cross-attention's logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import Attention, NotWholeError, Run, Size, Tap
from .focus import Rows

_MULTIPLE = 8  # of a head's width, which fused kernels ask for


def bias_parts(rows: Rows, regions: Tensor, strength: float, length: int) -> tuple[Tensor, Tensor]:
    """The bias b[r,n,l] = -strength * (1 - M(n)) in the columns l of a token with region M.

    regions: the subject's (R,1,h,w) in 0..1 at the layer's size, N = h * w; a style's is the rest.
    length: columns of the context. Returns the cells' part (R,N,2) and the words' (R,L,2) float32,
    whose product is b; 0 in other columns. Attention inside the region is left free, as in the
    method's loss (P eq. 8).
    """
    subject = regions.float().flatten(1)
    outside = torch.stack([1 - subject, subject], dim=-1)
    columns = torch.zeros(len(rows), length, 2, device=regions.device)
    for row, tokens in enumerate(rows):
        for token in tokens:
            columns[row, list(token.columns), int(token.role == "style")] = 1
    return -strength * outside, columns


def biased(attention: Attention, cells: Tensor, words: Tensor) -> Attention:
    """An attention whose logits have cells words^T added: (B,N,R) and (B,L,R) of a low rank R.

    N and L are of the picture and of the words; in joint attention other logits are left alone.

    The bias travels in further dimensions of queries and keys, so every kernel takes it, those
    without a mask or a scale as well. The values are widened alike; cut what comes out to their
    own width.
    """
    width = attention.query.shape[-1]
    more = -(-cells.shape[-1] // _MULTIPLE) * _MULTIPLE
    query, key, value = (
        F.pad(x, (0, more)) for x in (attention.query, attention.key, attention.value)
    )
    kernels = math.sqrt(width + more)  # what a kernel divides by of its own
    query = query * ((attention.scale or width**-0.5) * kernels)
    extra = slice(width, width + cells.shape[-1])
    query[:, :, attention.cells, extra] = (cells * kernels)[:, None].to(query)
    key[:, :, attention.words, extra] = words[:, None].to(key)
    return replace(attention, query=query, key=key, value=value, scale=None)


def holding(rows: Rows, regions: Tensor, strength: float) -> Tap:
    """A tap that holds the tokens to their regions.

    rows: the tokens of each row of the batch. regions: (R,1,h,w) in 0..1 at the latents' size. In
    a pass it raises NotWholeError where a layer does not see whole pictures.
    """
    made: dict[tuple[Size, int, Sequence[int]], tuple[Tensor, Tensor]] = {}

    def tap(attention: Attention, run: Run) -> Tensor:
        length, width = attention.columns(), attention.key.shape[-1]
        own = attention.index or range(len(rows))
        if attention.size is None or len(attention.query) != len(own):
            raise NotWholeError(
                f"Attention cannot be held to a region in the layer {attention.site!r}: something "
                "merges, tiles or splits the picture there. Leave that out, or refocusing."
            )
        key = attention.size, length, own
        if key not in made:
            sized = F.interpolate(regions.float()[list(own)], attention.size, mode="area")
            made[key] = bias_parts([rows[row] for row in own], sized, strength, length)
        return run(biased(attention, *made[key]))[..., :width]

    return tap
