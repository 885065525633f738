"""Region-grouped blend attention: each reference is seen from its own region alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .rsa import ReferenceKeys, reference_attention


def region_attention(
    plain: Tensor,
    projections: tuple[Tensor, Tensor, Tensor],
    references: Sequence[ReferenceKeys],
    regions: Tensor,
    heads: int,
) -> Tensor:
    """out[R_i] = softmax(Q[R_i] [K; K_i]^T / sqrt d + [0; w_i]) [V; V_i]; elsewhere `plain`.

    plain: (B,N,heads*d), what self-attention gives. projections: its query, key and value, of the
    same shape. references: one of each of the K concepts. regions: (B,K,N) bool, disjoint.
    """
    query, key, value = projections
    out = plain.clone()
    for row, concept in regions.any(dim=-1).nonzero().tolist():
        reference = references[concept]
        if reference.empty:
            continue
        where, own = regions[row, concept], slice(row, row + 1)
        out[row, where] = reference_attention(
            query[own, where], key[own], value[own], [reference], heads
        )[0]
    return out
