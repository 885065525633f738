"""The optimiser of a phase, and the course of its learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..config import OptimizerName, Phase, Recipe
from ..errors import MagiCaptureError


def make_optimizer(
    recipe: Recipe, phase: Phase, groups: Mapping[str, Sequence[nn.Parameter]]
) -> torch.optim.Optimizer:
    """AdamW over the parameter groups by name, each at its own rate; none for those without.

    Token vectors have no weight decay: it would pull them off the sphere of ordinary words.
    """
    parameters = [
        {
            "name": name,
            "params": list(members),
            "lr": getattr(phase.rates, name),
            "base_lr": getattr(phase.rates, name),
            "weight_decay": 0.0 if name == "tokens" else recipe.weight_decay,
        }
        for name, members in groups.items()
        if getattr(phase.rates, name)
    ]
    return optimizer_class(recipe.optimizer)(parameters)


def optimizer_class(name: OptimizerName) -> Callable[..., torch.optim.Optimizer]:
    """AdamW in 32 or 8 bits; raises MagiCaptureError where bitsandbytes is missing."""
    if name == "adamw":
        return torch.optim.AdamW
    try:
        import bitsandbytes
    except ImportError as error:
        raise MagiCaptureError(
            "The optimiser adamw_8bit needs the package bitsandbytes, which could not be imported "
            f"({error}). Install it, or choose adamw."
        ) from error
    return bitsandbytes.optim.AdamW8bit  # type: ignore[no-any-return]


def rate_factor(phase: Phase, step: int) -> float:
    """Share of the learning rate at a step (0-based) of the phase: warm-up, then the schedule."""
    if step < phase.warmup:
        return (step + 1) / (phase.warmup + 1)
    progress = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    if phase.schedule == "linear":
        return 1 - progress
    if phase.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def set_rates(optimizer: torch.optim.Optimizer, phase: Phase, step: int) -> None:
    """Set each group's learning rate for a step (0-based) of the phase."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate_factor(phase, step)
