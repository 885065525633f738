"""What a demo is asked for: which pair, and how long to train."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Checked, Recipe, setting
from ..errors import InputError
from ..paperdoll.model import ModelName
from ..paperdoll.pairs import PHOTOS, Pair, make_pair
from ..paperdoll.recipe import doll_recipe
from ..paperdoll.seeds import Split, split_of
from ..recipes import with_steps

FAST_STEPS = 210
"""Optimiser steps with which a demo ends within a minute on two cores."""

HELD_OUT = "1000000-1099999 or 2000000-2999999"


@dataclass(frozen=True)
class DemoSettings(Checked):
    """Which pair, how many steps, and the random numbers."""

    identity: int = setting(1_000_000, f"Seed of the person: {HELD_OUT}.", low=0)
    style: int = setting(1_000_099, "Seed of the style, of the same range.", low=0)
    steps: int | None = setting(
        None, "Training steps; the recipe's own if not given.", low=2, high=100_000
    )
    seed: int = setting(0, "Seed of the training and of the pictures.", low=0)
    model: ModelName = setting(
        "unet",
        "The base model: a UNet of Stable Diffusion's class, or a transformer of Flux's, which "
        "takes about twice as long.",
    )


def held_out_pair(identity: int, style: int, photos: int = PHOTOS) -> Pair:
    """The pair of two seeds that the demo model has never seen; raises InputError for others."""
    for what, seed in (("identity", identity), ("style", style)):
        try:
            split = split_of(seed)
        except ValueError as error:
            raise InputError(f"The {what}'s {error}.") from error
        if split is Split.TRAIN:
            raise InputError(
                f"The {what}'s seed {seed} is one that the demo model was trained on, so its "
                f"result would prove nothing; take one of {HELD_OUT}."
            )
    return make_pair(identity, style, photos=photos)


def recipe_for(steps: int | None = None, model: ModelName = "unet") -> Recipe:
    """The default recipe at the demo model's size, of its own length or of `steps` in all."""
    default = doll_recipe(model=model)
    return default if steps is None else with_steps(default, steps)
