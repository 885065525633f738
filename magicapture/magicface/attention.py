"""What self-attention sees of references: everywhere (RSA), or region by region (RBA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


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
    """RSA: softmax(Q [K; K_1; ...]^T / sqrt d + [0; w_1; ...]) [V; V_1; ...] in each head.

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
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (query, keys, values))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return rearrange(mixed, "b h n d -> b n (h d)")


def region_attention(
    plain: Tensor,
    projections: tuple[Tensor, Tensor, Tensor],
    references: Sequence[ReferenceKeys],
    regions: Tensor,
    heads: int,
) -> Tensor:
    """RBA: out[R_i] = softmax(Q[R_i] [K; K_i]^T / sqrt d + [0; w_i]) [V; V_i]; elsewhere `plain`.

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


@contextmanager
def edited(
    layers: Mapping[str, nn.Module], edit: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Change what layers attend to: `edit(name, attention)` gets what enters `to_out`.

    attention: (B,N,heads*d), the heads side by side, not yet projected. It fits diffusers' UNet
    and ComfyUI's alike, whatever kernel computes the attention.
    """
    with ExitStack() as hooks:
        for name, layer in layers.items():
            change = partial(_change, edit, name)
            handle = layer.get_submodule("to_out.0").register_forward_pre_hook(change)
            hooks.callback(handle.remove)
        yield


def _change(
    edit: Callable[[str, Tensor], Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return (edit(name, args[0]), *args[1:])
