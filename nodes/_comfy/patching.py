"""What our patches of MODEL have in common: wrappers under one key, and where a sampling stands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...magicapture.sampling import share_of


def wrapped(model: ModelPatcher, key: str, patch: object, kinds: Sequence[str]) -> ModelPatcher:
    """A clone of MODEL with a patch's methods as wrappers, each named as its kind of wrapper."""
    model = model.clone()
    for kind in kinds:
        model.add_wrapper_with_key(kind, key, getattr(patch, kind))
    if not hasattr(torch.compiler, "set_stance"):
        as_written = torch.compiler.disable(_through)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, as_written)
    return model


def _through(executor: Any, *args: Any, **kwargs: Any) -> Any:
    return executor(*args, **kwargs)


def uncompiled() -> AbstractContextManager[Any]:
    """Let what torch.compile has compiled (TorchCompileModel) run as it is written.

    Compiled before it was patched, a network would neither call our wrappers nor go through our
    taps. PyTorch before 2.6 has no such thing; there a network is still compiled as `wrapped`
    leaves it, if it was not before.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def network_of(model: Any) -> nn.Module:
    """The network of what a MODEL holds, also where torch.compile has put itself around it."""
    network: nn.Module = model.diffusion_model
    return getattr(network, "_orig_mod", network)


def unwrapped(model: ModelPatcher, key: str, kinds: Sequence[str]) -> ModelPatcher:
    """A clone of MODEL without the wrappers under a key."""
    model = model.clone()
    for kind in (*kinds, WrappersMP.DIFFUSION_MODEL):
        model.remove_wrappers_with_key(kind, key)
    return model


def patches(model: ModelPatcher, key: str, kind: str) -> list[Any]:
    """The patches that MODEL has under a key, by one of their kinds of wrapper."""
    return [wrapper.__self__ for wrapper in model.wrappers.get(kind, {}).get(key, ())]


def with_options(options: Any, more: dict[str, Any]) -> Any:
    """Model options with more transformer_options; what came in stays as it is."""
    inner = options.get("transformer_options", {})
    return {**options, "transformer_options": {**inner, **more}}


def images_of(options: dict[str, Any], count: int) -> Sequence[int]:
    """Which images of a sampler's batch a pass draws, `count` of them.

    All, but where a context window (Context Windows, of dim 0) shows some of them.
    """
    window = options.get("context_window")
    if window is None or window.dim != 0:
        return range(count)
    anchor = getattr(window, "causal_anchor_index", None)
    before = () if anchor is None or anchor < 0 else (anchor,)
    images = (*before, *window.index_list)
    return images if len(images) == count else range(count)


def step_sigma(sigma: Tensor, transformer_options: dict[str, Any]) -> float:
    """The noise level at which the step began that asks for a sigma (B,).

    A level between two steps, which some samplers ask for as well, belongs to the first.
    """
    level = float(sigma.flatten()[0])
    levels = transformer_options.get("sample_sigmas")
    reached = [] if levels is None else [s for s in levels.tolist() if s >= level * (1 - 1e-4)]
    return min(reached, default=level)


def share_done(sigma: Tensor, transformer_options: dict[str, Any]) -> float:
    """The share of a sampling's steps done at a sigma (B,): 0 at the first, below 1 at the last."""
    sigmas = transformer_options.get("sample_sigmas")
    return 0.0 if sigmas is None else share_of(float(sigma.flatten()[0]), sigmas.tolist())
