"""Gradient checkpointing: blocks whose activations are computed anew in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let each module keep only its inputs for the backward pass (Chen et al., arXiv 1604.06174).

    Outputs and gradients stay equal; memory falls and a forward pass is added. The instances'
    `forward` is replaced, and put back on the way out. Without gradients nothing runs twice.
    """
    with ExitStack() as scope:
        for module in modules:
            scope.enter_context(_forward_of(module, partial(_recomputed, module.forward)))
        yield


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """One run, checkpointed; ComfyUI goes on changing the options of a pass that a block was given.

    Computed anew, the block gets them as they were.
    """
    named = {name: _as_now(value) for name, value in kwargs.items()}
    return checkpoint(forward, *map(_as_now, args), use_reentrant=False, **named)


def _as_now(value: Any) -> Any:
    return dict(value) if type(value) is dict else value


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get("forward")  # an instance's own, as accelerate's hooks put there
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
