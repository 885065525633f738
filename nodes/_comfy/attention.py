"""The attention of ComfyUI's networks, reached by ComfyUI's own override of the fused call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ...magicapture.attention import Attention, Call, Picture, TappedUNet

OVERRIDE = "optimized_attention_override"
ROWS = "magicapture_rows"
"""The option that says which rows of a batch a pass is of, where they run apart."""


class TappedComfy(TappedUNet):
    """ComfyUI's UNet, Flux or NextDiT; an override already there computes what our taps let by."""

    def _picture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Picture | None:
        """Of a UNet's features, or of a transformer's latents, padded to whole patches.

        Z-Image fills words and cells up to a multiple of places each.
        """
        seen = super()._picture(args, kwargs)
        patch = getattr(self.module, "patch_size", getattr(self.module, "patch", None))
        if seen is None or patch is None:
            return seen
        context = args[2] if len(args) > 2 else kwargs["context"]
        height, width = (-(-cells // patch) for cells in seen.size)
        multiple = getattr(self.module, "pad_tokens_multiple", None) or 1
        picture = Picture.joint(seen.rows, (height, width), context.shape[1], multiple=multiple)
        return replace(picture, index=(kwargs.get("transformer_options") or {}).get(ROWS))

    def _begin(
        self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable[[], None]]:
        options = kwargs.get("transformer_options") or {}
        override = _override(call, options.get(OVERRIDE))
        return {**kwargs, "transformer_options": {**options, OVERRIDE: override}}, _nothing

    def _skipped(self, site: str) -> None:
        """Another node computes this layer by itself, as Perturbed-Attention Guidance does.

        Such a layer is left as it is; who reads or holds attention says when it saw none at all.
        """


def _override(call: Call, before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    def override(
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        scale: float | None = None,
        **further: Any,
    ) -> Tensor:
        """(B,N,H*D), or (B,H,N,D) where reshaping is skipped, as ComfyUI's kernels have it."""
        shape = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        further = {"attn_precision": attn_precision, **further}
        given = query, key, value
        if not skip_reshape:
            query, key, value = (_apart(x, heads) for x in given)

        def run(a: Attention) -> Tensor:
            scaled = further if a.scale is None else {**further, "scale": a.scale}
            if a.query is query and a.key is key and a.value is value:  # bit by bit as it came
                out = compute(*given, heads, a.mask, **shape, **scaled)
                return out if skip_output_reshape else _apart(out, heads)
            ours = {"skip_reshape": True, "skip_output_reshape": True}
            return compute(a.query, a.key, a.value, heads, a.mask, **ours, **scaled)

        compute = kernel if before is None else partial(before, kernel)
        out = call(query, key, value, run, scale=scale, mask=mask)
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    return override


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _nothing() -> None:
    pass
