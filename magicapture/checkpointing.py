"""Gradient checkpointing: blocks whose activations are computed anew in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let each module keep only its inputs for the backward pass (Chen et al., arXiv 1604.06174).

    Outputs and gradients stay equal; memory falls and a forward pass is added. The instances'
    `forward` is replaced and put back on the way out; a module named twice is wrapped once.
    """
    with ExitStack() as scope:
        for module in {id(module): module for module in modules}.values():
            scope.enter_context(_forward_of(module, _recomputing(module.forward)))
        yield


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputing


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
