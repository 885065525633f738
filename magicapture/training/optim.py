"""The optimiser of a phase, and the course of its learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from ..backbone import Backbone
from ..config import OptimizerName, Phase, Recipe
from ..errors import MagiCaptureError
from ..families import FAMILIES, Family
from ..tokens import TokenVectors

CLIP_SIZE = 0.014
"""The root mean square of CLIP-L's vectors of ordinary words, for families that have no CLIP."""


def make_optimizer(
    recipe: Recipe,
    phase: Phase,
    groups: Mapping[str, Sequence[nn.Parameter]],
    factors: Mapping[str, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """AdamW over the parameter groups by name, each at its own rate; none for those without.

    Token vectors have no weight decay: it would pull them off the sphere of ordinary words.
    factors: what rates are multiplied by, by group; "tokens.t5xxl" has the rate of "tokens".
    """
    parameters = []
    for name, members in groups.items():
        kind = name.partition(".")[0]
        rate = getattr(phase.rates, kind) * factors.get(name, 1.0)
        if rate and members:
            parameters.append(
                {
                    "name": name,
                    "params": list(members),
                    "lr": rate,
                    "base_lr": rate,
                    "weight_decay": 0.0 if kind == "tokens" else recipe.weight_decay,
                }
            )
    return optimizer_class(recipe.optimizer)(parameters)


def token_groups(vectors: TokenVectors, family: Family) -> dict[str, list[nn.Parameter]]:
    """The token vectors as parameter groups: apart where an encoder's have a scale of their own."""
    groups: dict[str, list[nn.Parameter]] = {"tokens": []}
    for of in vectors.tokens.values():
        for key, values in of.items():  # type: ignore[operator]
            own = family.encoder(key).own_scale
            groups.setdefault(f"tokens.{key}" if own else "tokens", []).append(values)
    return groups


def token_factors(backbone: Backbone, words: Iterable[str]) -> dict[str, float]:
    """What the rates of groups in `token_groups` are multiplied by.

    An encoder with a scale of its own gets the size of its vectors over CLIP's, each the root mean
    square of these ordinary words': T5's are hundreds of times larger. Without a CLIP the usual
    size of its vectors is taken.
    """
    family = FAMILIES[backbone.family]

    def size(key: str) -> float:
        known = torch.cat([backbone.word_vectors(key, word) for word in words])
        return float(known.square().mean().sqrt())

    others = (encoder.key for encoder in family.encoders if not encoder.own_scale)
    first = next(others, None)
    usual = CLIP_SIZE if first is None else size(first)
    return {
        f"tokens.{encoder.key}": size(encoder.key) / usual
        for encoder in family.encoders
        if encoder.own_scale
    }


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
