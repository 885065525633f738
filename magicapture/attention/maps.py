"""Attention maps from queries and keys: how much of each place's attention a token receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import InputError

Positions = Sequence[Mapping[str, Sequence[int]]]
"""For each row of a batch, the columns of each token in the context, by the token's name."""


@dataclass(frozen=True)
class LayerMaps:
    """One layer's attention to some tokens.

    layer: its name in the UNet.
    factor: latent cells a side that one query covers; 4 is 16x16 for SD 1.5 at 512 px.
    keys: (row of the batch, token name) of each map.
    values: (R,h,w) float32 in 0..1, one map a key: the share of attention the token receives.
    """

    layer: str
    factor: int
    keys: tuple[tuple[int, str], ...]
    values: Tensor


def token_attention(query: Tensor, key: Tensor, columns: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt d), averaged over the heads and summed over each token's columns.

    query (B,N,heads*d) and key (B,L,heads*d) of any float type; columns (B,L,T), 1 where a token
    has a vector. Returns (B,N,T), computed in float32 also under autocast.
    """
    with torch.autocast(query.device.type, enabled=False):
        return head_mean(query, key, heads) @ columns


def head_mean(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt d), averaged over the heads: (B,N,L) float32, rows summing to 1.

    query (B,N,heads*d) and key (B,L,heads*d) of any float type.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (query, key))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


def map_size(queries: int, latent_size: tuple[int, int]) -> tuple[int, int, int]:
    """Factor, height and width of a layer's map, from its number of queries.

    Raises InputError for a number that no halving of the latents' height and width gives.
    """
    factor, (height, width) = 1, latent_size
    while height * width > queries:  # each level of the UNet halves the size, rounding up
        factor, height, width = factor * 2, (height + 1) // 2, (width + 1) // 2
    if height * width != queries:
        raise InputError(
            f"A layer has {queries} queries, which no halving of {latent_size[0]}x"
            f"{latent_size[1]} gives; pass the size of the latents that the UNet was run on."
        )
    return factor, height, width


@dataclass(frozen=True)
class TokenColumns:
    """The columns of a batch's tokens, laid out for one matrix product a layer.

    keys: (row of the batch, token name) of each of R maps. rows: (B',) those with tokens.
    columns: (B',L,T), 1 where a row's t-th token has a vector. places: (2,R), the row among B' and
    the token of each key.
    """

    keys: tuple[tuple[int, str], ...]
    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, positions: Positions, length: int, device: torch.device) -> TokenColumns:
        """Those of a context with `length` columns; at least one row has a token."""
        rows = [row for row, tokens in enumerate(positions) if tokens]
        columns = torch.zeros(len(rows), length, max(len(positions[row]) for row in rows))
        keys, places = [], []
        for i, row in enumerate(rows):
            for t, (name, where) in enumerate(positions[row].items()):
                columns[i, list(where), t] = 1
                keys.append((row, name))
                places.append((i, t))
        index = torch.tensor(places, device=device).T
        return cls(tuple(keys), torch.tensor(rows, device=device), columns.to(device), index)

    def attention(self, query: Tensor, key: Tensor, heads: int) -> Tensor:
        """`token_attention` of each key: (R,N)."""
        # Recomputed in the backward pass: keeping the attention to every column would cost 7 MiB
        # a 16x16 layer and 15 MiB a 32x32 one at batch 3, to save less than 1 % of a step.
        values = checkpoint(
            token_attention,
            query[self.rows],
            key[self.rows],
            self.columns,
            heads,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return values[self.places[0], :, self.places[1]]
