"""What self-attention sees of references: everywhere (RSA), or region by region (RBA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import Attention


@dataclass(frozen=True, eq=False)
class ReferenceKeys:
    """What one reference offers to one attention layer, inside its mask alone.

    key, value: (H,P,D) for each of the P masked places. weight: added to the logits
    of these keys, so 3 multiplies the unnormalised attention by 20; minus infinity hides them.
    """

    key: Tensor
    value: Tensor
    weight: float

    @property
    def empty(self) -> bool:
        """Whether no attention can fall here."""
        return self.key.shape[1] == 0 or self.weight == float("-inf")


def reference_attention(attention: Attention, references: Sequence[ReferenceKeys]) -> Tensor:
    """RSA: softmax(Q [K; K_1; ...]^T / sqrt d + [0; w_1; ...]) [V; V_1; ...] in each head.

    The references' rows serve the whole batch. A fused attention with an additive bias; returns
    (B,H,N,D).
    """
    batch, own = len(attention.query), attention.key.shape[2]
    shape = (batch, -1, -1, -1)
    key = torch.cat([attention.key, *(r.key.expand(shape) for r in references)], dim=2)
    value = torch.cat([attention.value, *(r.value.expand(shape) for r in references)], dim=2)
    bias = attention.query.new_zeros(1, 1, 1, key.shape[2])
    start = own
    for reference in references:
        bias[..., start : start + reference.key.shape[1]] = reference.weight
        start += reference.key.shape[1]
    return F.scaled_dot_product_attention(
        attention.query, key, value, attn_mask=bias, scale=attention.scale
    )


def region_attention(
    plain: Tensor,
    attention: Attention,
    references: Sequence[ReferenceKeys],
    regions: Tensor,
) -> Tensor:
    """RBA: out[R_i] = softmax(Q[R_i] [K; K_i]^T / sqrt d + [0; w_i]) [V; V_i]; elsewhere `plain`.

    plain: (B,H,N,D), what the attention gives by itself. references: one of each of the K
    concepts. regions: (B,K,N) bool, disjoint.
    """
    out = plain.clone()
    for row, concept in regions.any(dim=-1).nonzero().tolist():
        reference = references[concept]
        if reference.empty:
            continue
        where, own = regions[row, concept], slice(row, row + 1)
        query = attention.query[own][:, :, where]
        key, value = attention.key[own], attention.value[own]
        seen = replace(attention, query=query, key=key, value=value)
        out[row][:, where] = reference_attention(seen, [reference])[0]
    return out
