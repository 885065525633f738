"""Attention maps: how much of each place's attention a token receives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .tap import Attention, Size

Positions = Sequence[Mapping[str, Sequence[int]]]
"""For each row of a batch, the columns of each token in the context, by the token's name."""


@dataclass(frozen=True)
class LayerMaps:
    """One layer's attention to some tokens.

    layer: its name in the UNet.
    factor: latent cells a side that one query covers; 4 is 16x16 for SD 1.5 at 512 px. Of a layer
        looked at from fewer cells it is still the layer's own.
    keys: (row of the batch, token name) of each map.
    values: (R,h,w) float32 in 0..1, one map a key: the share of attention the token receives.
    """

    layer: str
    factor: int
    keys: tuple[tuple[int, str], ...]
    values: Tensor


def factor_of(size: Size, latent_size: Size) -> int:
    """Latent cells a side that one cell of a map covers, the nearest power of two."""
    return 2 ** max(0, round(math.log2(latent_size[0] * latent_size[1] / math.prod(size)) / 2))


@dataclass(frozen=True)
class TokenColumns:
    """The columns of a pass's tokens, laid out for one matrix product a layer.

    keys: (row of the batch, token name) of each of R maps. rows: (B',) of the pass, with tokens.
    columns: (B',L,T), 1 where a row's t-th token has a vector. places: (2,R), the row among B' and
    the token of each key.
    """

    keys: tuple[tuple[int, str], ...]
    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, positions: Positions, attention: Attention) -> TokenColumns:
        """Those that an attention has among the words of all rows; positions: of the batch."""
        batch, device = attention.index or range(len(positions)), attention.key.device
        rows = [row for row, own in enumerate(batch) if positions[own]]
        most = max((len(positions[batch[row]]) for row in rows), default=0)
        columns = torch.zeros(len(rows), attention.columns(), most)
        keys, places = [], []
        for i, row in enumerate(rows):
            for t, (name, where) in enumerate(positions[batch[row]].items()):
                columns[i, list(where), t] = 1
                keys.append((batch[row], name))
                places.append((i, t))
        index = torch.tensor(places, device=device).T
        return cls(tuple(keys), torch.tensor(rows, device=device), columns.to(device), index)

    def attention(self, attention: Attention, stride: int = 1) -> Tensor:
        """The share of an attention that each key has: (R,N) float32; see `Attention.shares`."""
        # Recomputed in the backward pass: keeping the attention to every column would cost 7 MiB
        # a 16x16 layer and 15 MiB a 32x32 one at batch 3, to save less than 1 % of a step.
        shares = attention.rows(self.rows).shares
        values = checkpoint(
            shares, self.columns, stride, use_reentrant=False, preserve_rng_state=False
        )
        return values[self.places[0], :, self.places[1]]
