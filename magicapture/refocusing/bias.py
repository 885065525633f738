"""Refocusing without a gradient: an additive bias on cross-attention's logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import cross_attentions, map_size
from .focus import Rows


def attention_bias(rows: Rows, regions: Tensor, strength: float, length: int) -> Tensor:
    """b[r,n,l] = -strength * (1 - M(n)) in the columns l of a token with region M, 0 elsewhere.

    regions: the subject's (R,1,h,w) in 0..1 at the layer's size, N = h * w; a style's is the rest.
    length: columns of the context. Returns (R,N,L) float32. Attention inside the region is left
    free, as in the method's loss (P eq. 8).
    """
    subject = regions.float().flatten(1)
    outside = torch.stack([1 - subject, subject], dim=-1)
    columns = torch.zeros(len(rows), 2, length, device=regions.device)
    for row, tokens in enumerate(rows):
        for token in tokens:
            columns[row, int(token.role == "style"), list(token.columns)] = 1
    return -strength * (outside @ columns)


@contextmanager
def biased(
    unet: nn.Module,
    rows: Rows,
    regions: Tensor,
    strength: float,
    layers: Iterable[nn.Module] | None = None,
) -> Iterator[None]:
    """Hold the tokens to their regions in every pass of the UNet run inside.

    rows: the tokens of each row of the batch. regions: (R,1,h,w) in 0..1 at the latents' size.
    layers: the UNet's cross-attentions, where they are known already: to walk through the UNet
    at each step takes longer than the bias. Works on diffusers' UNet and ComfyUI's, whose
    cross-attentions take an additive mask.
    """
    made: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def bias(queries: int, length: int, dtype: torch.dtype) -> Tensor:
        key = queries, length, dtype
        if key not in made:
            _, height, width = map_size(queries, (regions.shape[-2], regions.shape[-1]))
            sized = F.interpolate(regions.float(), (height, width), mode="area")
            made[key] = attention_bias(rows, sized, strength, length).to(dtype)
        return made[key]

    with ExitStack() as hooks:
        for layer in cross_attentions(unet).values() if layers is None else layers:
            handle = layer.register_forward_pre_hook(_adding(layer, bias), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _adding(
    layer: nn.Module, bias: Callable[[int, int, torch.dtype], Tensor]
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A hook that adds the bias to the mask a cross-attention is called with."""
    kind: Any = type(layer)
    mask, context = _keywords(kind)

    def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        x = args[0]
        seen = kwargs[context] if context in kwargs else args[1]
        added = bias(x.shape[1], seen.shape[1], x.dtype)
        present = kwargs.get(mask)
        return args, {**kwargs, mask: added if present is None else present + added}

    return hook


@cache
def _keywords(kind: Any) -> tuple[str, str]:
    """What a cross-attention calls its mask and its context: diffusers' or ComfyUI's names."""
    if "encoder_hidden_states" in inspect.signature(kind.forward).parameters:
        return "attention_mask", "encoder_hidden_states"
    return "mask", "context"
