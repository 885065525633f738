"""Reference-aware self-attention: a picture's pixels look at references beside themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ReferenceKeys:
    """What one reference offers to one attention layer, inside its mask alone.

    key, value: (P,heads*d), one row for each of the P masked places. weight: added to the logits
    of these keys, so 3 multiplies the unnormalised attention by 20; minus infinity hides them.
    """

    key: Tensor
    value: Tensor
    weight: float

    @property
    def empty(self) -> bool:
        """Whether no attention can fall here."""
        return len(self.key) == 0 or self.weight == float("-inf")


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, references: Sequence[ReferenceKeys], heads: int
) -> Tensor:
    """softmax(Q [K; K_1; ...]^T / sqrt d + [0; w_1; ...]) [V; V_1; ...] in each head.

    query (B,N,heads*d), key and value (B,M,heads*d); the references' rows serve the whole batch.
    A fused attention with an additive bias; returns (B,N,heads*d).
    """
    batch, own = len(query), key.shape[1]
    keys = torch.cat([key, *(r.key.expand(batch, -1, -1) for r in references)], dim=1)
    values = torch.cat([value, *(r.value.expand(batch, -1, -1) for r in references)], dim=1)
    bias = query.new_zeros(1, 1, 1, keys.shape[1])
    start = own
    for reference in references:
        bias[..., start : start + len(reference.key)] = reference.weight
        start += len(reference.key)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, keys, values))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)
