"""ComfyUI's blocks change tensors that autograd still needs; here they change copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.text_encoders import llama
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LLAMA_BLOCKS = tuple(
    kind
    for name, kind in vars(llama).items()
    if name.startswith("TransformerBlock") and isinstance(kind, type)
)


def out_of_place(module: nn.Module) -> Callable[..., Any] | None:
    """A `forward` with the same numbers and right gradients, or None where the own is right.

    Blocks of Flux, CLIP and T5 add their branches to the residual in place, after a normalisation
    that remembers it, which therefore gets a copy. So does a whole block: it would change its
    input, from which checkpointing computes it anew. Llama's blocks write over theirs (`out=`).
    A UNet's change nothing.
    """
    forward: Callable[..., Any] = module.forward
    if isinstance(module, _LLAMA_BLOCKS):
        forward = partial(_anew, forward)
    normalises = _is_norm(module) or any(map(_is_norm, module.children()))
    if normalises and not isinstance(module, BasicTransformerBlock):
        return partial(_on_copies, forward)
    return None


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a layer or RMS normalisation, by the word that all their names have."""
    return "norm" in type(module).__name__.lower() and not isinstance(module, nn.GroupNorm)


def _on_copies(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    named = {name: _copy(value) for name, value in kwargs.items()}
    return forward(*map(_copy, args), **named)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def _anew(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _WithoutOut():
        return forward(*args, **kwargs)


class _WithoutOut(TorchFunctionMode):
    """Lets every function return a new tensor where it was told to write over another."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **{k: v for k, v in (kwargs or {}).items() if k != "out"})
