"""The named recipes: our default, the paper's, the release's, and baselines in the same loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import (
    IdentitySettings,
    LoraSettings,
    Phase,
    PriorSettings,
    Rates,
    Recipe,
    RefocusSettings,
    Weights,
)
from .errors import InputError

DEFAULT = "magicapture"


def _magicapture() -> Recipe:
    return Recipe(
        name="magicapture",
        phases=(
            Phase("tokens", 400, Rates(tokens=1e-3), Weights(source=1, style=1)),
            Phase(
                "tokens and LoRA",
                1000,
                Rates(tokens=1e-4, unet=2e-4),
                Weights(source=1, style=1, composed=1, identity=1, attention=0.01),
                schedule="cosine",
                warmup=20,
            ),
        ),
    )


def _paper() -> Recipe:
    return Recipe(
        name="paper",
        phases=(
            Phase("tokens", 1200, Rates(tokens=5e-4), Weights(source=1, style=1)),
            Phase(
                "tokens and LoRA",
                1500,
                Rates(tokens=1e-5, unet=1e-4),
                Weights(source=1, style=1, composed=1, identity=1, attention=2.5),
            ),
        ),
        refocus=RefocusSettings(scaling="minmax", factors=(4,)),
        identity=IdentitySettings(weight_by_signal=False, mean_target=False),
        normalise_area=False,
        flip=True,
        accumulation=4,
    )


def _release() -> Recipe:
    return Recipe(
        name="release",
        phases=(
            Phase(
                "tokens",
                1200,
                Rates(tokens=2e-3),
                Weights(source=1, style=1, token_norm=0.01),
                schedule="linear",
                max_grad_norm=None,
                boost=2.0,
            ),
            Phase(
                "tokens and LoRA",
                1500,
                Rates(tokens=1e-4, unet=4e-4, text_encoder=4e-5),
                Weights(source=1, style=1, composed=1, identity=1, attention=2.5),
                schedule="linear",
                max_timestep=800,
                boost=2.0,
            ),
        ),
        lora=LoraSettings(rank=4, targets="all_linear"),
        refocus=RefocusSettings(scaling="minmax", factors=(4,), map_size=64),
        identity=IdentitySettings(
            max_timestep=800,
            separate_pass=True,
            tasks=("composed", "source"),
            weight_by_signal=False,
            straight_through=False,
            mean_target=False,
        ),
        variants=1,
        flip=True,
        batching="one_task",
        precision="fp16",
    )


def _textual_inversion() -> Recipe:
    return Recipe(
        name="textual-inversion",
        phases=(Phase("tokens", 5000, Rates(tokens=5e-3), Weights(source=1, style=1)),),
        masked=False,
        flip=True,
    )


def _dreambooth() -> Recipe:
    return Recipe(
        name="dreambooth",
        phases=(
            Phase(
                "LoRA",
                2000,
                Rates(unet=1e-4, text_encoder=1e-5),
                Weights(source=1, style=1, prior=1),
            ),
        ),
        lora=LoraSettings(targets="cross_and_self"),
        prior=PriorSettings(images=200),
        masked=False,
    )


def _custom_diffusion() -> Recipe:
    return Recipe(
        name="custom-diffusion",
        phases=(
            Phase(
                "tokens and keys, values",
                750,
                Rates(tokens=5e-6, unet=1e-4),
                Weights(source=1, style=1, prior=1),
            ),
        ),
        lora=LoraSettings(rank=64, targets="cross_kv"),
        prior=PriorSettings(images=200),
        masked=False,
        flip=True,
    )


_RECIPES: dict[str, Callable[[], Recipe]] = {
    "magicapture": _magicapture,
    "paper": _paper,
    "release": _release,
    "textual-inversion": _textual_inversion,
    "dreambooth": _dreambooth,
    "custom-diffusion": _custom_diffusion,
}

RECIPE_NAMES = tuple(_RECIPES)


def recipe(name: str = DEFAULT) -> Recipe:
    """The recipe of this name; raises InputError for a name there is not."""
    if name not in _RECIPES:
        raise InputError(f"There is no recipe {name!r}; there are {', '.join(RECIPE_NAMES)}.")
    return _RECIPES[name]()


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with its phases stretched or shrunk to `steps` in all, in their proportion."""
    if steps < len(recipe.phases):
        raise InputError(
            f"{steps} steps are too few for the {len(recipe.phases)} phases of {recipe.name!r}."
        )
    scale, phases, used = steps / recipe.steps, [], 0
    for phase in recipe.phases[:-1]:
        own = max(1, round(phase.steps * scale))
        phases.append(replace(phase, steps=own, warmup=round(phase.warmup * scale)))
        used += own
    last = recipe.phases[-1]
    phases.append(replace(last, steps=steps - used, warmup=round(last.warmup * scale)))
    return replace(recipe, phases=tuple(phases))


def miniature(recipe: Recipe) -> Recipe:
    """The recipe for a small model of 128 px, such as paperdoll's: a quarter of everything.

    One rule for every recipe: resolution, steps, class images and the size of enlarged maps are
    divided by four, and learning rates are multiplied by four, so that rate times steps, the
    length of the way, stays. Attention is looked at in layers twice as fine, since a small UNet
    has a level less: what is 16x16 for SD 1.5 at 512 px is 8x8 here, the coarsest but the middle.
    The frozen model computes in its own number format.
    """
    refocus, prior = recipe.refocus, recipe.prior
    return replace(
        with_rates(with_steps(recipe, round(recipe.steps / 4)), 4),
        resolution=recipe.resolution // 4,
        refocus=replace(
            refocus,
            factors=tuple(max(1, factor // 2) for factor in refocus.factors),
            map_size=refocus.map_size and refocus.map_size // 4,
        ),
        prior=replace(prior, images=round(prior.images / 4)),
        precision="model",
    )


def with_rates(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every learning rate multiplied by a factor."""
    phases = tuple(
        replace(
            phase,
            rates=Rates(
                *(factor * getattr(phase.rates, f) for f in ("tokens", "unet", "text_encoder"))
            ),
        )
        for phase in recipe.phases
    )
    return replace(recipe, phases=phases)


def with_weights(recipe: Recipe, **weights: float) -> Recipe:
    """The recipe with these weights in every phase that gives the loss one at all."""
    phases = []
    for phase in recipe.phases:
        own = {name: value for name, value in weights.items() if phase.weights[name]}
        phases.append(replace(phase, weights=phase.weights.changed(**own)))
    return replace(recipe, phases=tuple(phases))
