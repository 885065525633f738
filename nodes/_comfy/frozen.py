"""Frozen linear layers that keep nothing for the backward pass: their weights are cast anew."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_QUANTISED: Any = getattr(comfy.ops, "QuantizedTensor", ())  # ComfyUI 0.33's
_BORROWED = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters
_SCALES = ("scale_weight", "pre_quant_scale")  # 0.3.64's of fp8 weights; 0.33's of their columns
_OWN_CAST = "cast_bias_weight"  # GGUF's layers dequantise in a method of this name
_COMFY_FORWARD = "forward_comfy_cast_weights"
_KNOWN = ("comfy.ops", "torch.nn.modules.linear")


class FrozenLinear(torch.autograd.Function):
    """x W^T + b for x (...,in) and a layer's frozen W (out,in) and b, in the dtype of x.

    ComfyUI's own cast makes W in the forward pass and again in the backward pass; neither the cast
    copy nor x is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        with _cast(layer, x) as (weight, bias):
            y = F.linear(x, weight, bias)
        # A view of a matrix product, which autograd would let nobody add to in place.
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with _cast(ctx.layer, grad) as (weight, _):
            return grad @ weight, None


def frozen(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer's `forward` by `FrozenLinear`."""
    return partial(_forward, layer)


def _forward(layer: nn.Module, input: Tensor) -> Tensor:
    return FrozenLinear.apply(input, layer)  # type: ignore[no-any-return, no-untyped-call]


def is_known_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight ComfyUI's cast, or its own, makes whole.

    Not a class of another pack with a `forward` of its own, which may do anything else.
    """
    weight = module._parameters.get("weight")
    if weight is None or not is_linear(module) or "forward" in vars(module):
        return False
    if hasattr(module, _OWN_CAST):
        return True
    methods = [getattr(type(module), name, None) for name in ("forward", _COMFY_FORWARD)]
    known = all(getattr(m, "__module__", "comfy.ops") in _KNOWN for m in methods)
    return known and (isinstance(weight, _QUANTISED) or is_plain(weight))


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes x W^T + b; 0.33's quantised layers are no nn.Linear."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, comfy.ops.CastWeightBiasOp)
        and hasattr(module, "in_features")
        and not hasattr(module, "num_experts")
    )


def is_plain(parameter: nn.Parameter) -> bool:
    """Whether a parameter holds its numbers as floats, of whatever size."""
    return type(parameter) is nn.Parameter and parameter.is_floating_point()


@contextmanager
def _cast(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias as sampling casts them for an input `like`: moved, dequantised, patched."""
    # In inference mode, as ComfyUI samples: streamed weights are changed in place as they arrive.
    with torch.inference_mode():
        weight, bias, *borrowed = _made(layer, like)
        whole = _whole(layer, weight, like.dtype)
    try:
        yield whole, bias
    finally:
        if borrowed:
            comfy.ops.uncast_bias_weight(layer, weight, bias, *borrowed)


def _made(layer: Any, like: Tensor) -> tuple[Any, ...]:
    """Weight and bias, and what the cast wants back, by whichever cast the layer has."""
    if hasattr(layer, _OWN_CAST):
        return tuple(layer.cast_bias_weight(like))
    if not isinstance(layer, comfy.ops.CastWeightBiasOp) or _is_forgotten(layer, like.device):
        own = (patched(layer, name, like.device, like.dtype) for name in ("weight", "bias"))
        return tuple(None if p is None else p.to(like) for p in own)
    if _BORROWED:
        return tuple(comfy.ops.cast_bias_weight(layer, like, offloadable=True))
    return tuple(comfy.ops.cast_bias_weight(layer, like))


def _is_forgotten(layer: nn.Module, device: torch.device) -> bool:
    """Whether ComfyUI's cast makes nothing of what is missing, or leaves out patches.

    It does so for weights that would be streamed, if there were a GPU.
    """
    missing = any(p is not None and p.is_meta for p in layer._parameters.values())
    return missing or (hasattr(layer, "_v") and device.type == "cpu")


def _whole(layer: nn.Module, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight itself where it is still in its quantised form, or without its scale."""
    if isinstance(weight, _QUANTISED):
        weight = weight.dequantize().to(dtype)
    for name in _SCALES:
        scale = getattr(layer, name, None)
        if scale is not None:
            weight = weight * scale.to(weight)
    return weight


def patched(module: nn.Module, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A parameter with its patches, which need it moved and cast; as it is, where it has none."""
    parameter = module._parameters[name]
    if parameter is None:
        return None
    weight: Tensor = present(parameter)
    streamed = getattr(module, f"{name}_lowvram_function", None) if hasattr(module, "_v") else None
    patches = [p for p in (streamed, *getattr(module, f"{name}_function", ())) if p is not None]
    if patches:
        weight = weight.to(device=device, dtype=dtype, copy=True)
    for patch in patches:
        weight = patch(weight)
    return weight


def present(tensor: Tensor) -> Tensor:
    """The tensor, or zeros for one that the checkpoint has not, as ComfyUI takes it."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
