"""Settings that take less, from the cheapest: the same result first, smaller pictures last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from ..backbone import Backbone
from ..config import Recipe
from ..dino import Dino
from ..errors import InputError
from ..faces.embed import FaceEmbedder
from ..families import FAMILIES
from ..training import TrainingJob
from .footprint import Footprint, gigabytes
from .plan import NEARLY, Plan, planned
from .records import Records

_SIDES = (1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128, 96)
_SMALLEST = 0.5
"""Of the side asked for, the smallest that is offered."""


@dataclass(frozen=True)
class Choice:
    """Settings in words, as options of the command line, and the recipe that has them."""

    title: str
    options: str
    recipe: Recipe


def choices(recipe: Recipe, cell: int = 64) -> Iterator[Choice]:
    """The recipe and those that take less memory, the least changed first; cell: of its sides."""
    yield Choice("as asked", "", recipe)
    saved = recipe
    if recipe.batching == "together":
        saved = replace(recipe, batching="in_turn")
        yield Choice("tasks in turn", "--set batching=in_turn", saved)
    if not recipe.checkpointing:
        yield Choice(
            "checkpointing", "--set checkpointing=true", replace(recipe, checkpointing=True)
        )
        saved = replace(saved, checkpointing=True)
        if saved.batching != recipe.batching:
            yield Choice("both: save memory", "--save-memory", saved)
    for side in _SIDES:
        if _SMALLEST * recipe.side <= side < recipe.side and not side % cell:
            smaller = replace(saved, resolution=side)
            yield Choice(f"and {side} px", f"--save-memory --resolution {side}", smaller)


def fitting(
    job: TrainingJob,
    backbone: Backbone,
    embedder: FaceEmbedder | None,
    dino: Dino | None = None,
    room: float | None = None,
    records: Records | None = None,
) -> tuple[Choice, Plan]:
    """The first choice that fits, with its plan; room: bytes, else those the device lets it have.

    Raises InputError where none does.
    """
    job = job.fitted(backbone.family)
    for choice in choices(job.recipe, FAMILIES[backbone.family].cell):
        changed = replace(job, recipe=choice.recipe)
        plan = planned(changed, backbone, embedder, records=records, dino=dino)
        if fits(plan, room):
            return choice, plan
    had = f"{gigabytes(room)}" if room is not None else "the memory that there is"
    raise InputError(
        f"--fit: not even {choice.title!r} fits in {had}: it needs about {gigabytes(plan.needs)}. "
        "Take a smaller base model or one in half precision, or a small decoder (TAESD)."
    )


def fits(plan: Plan, room: float | None = None) -> bool:
    """Whether a plan fits in so many bytes, else in what the device lets it have."""
    return plan.fits if room is None else plan.needs <= NEARLY * room


def quantised(footprint: Footprint, network: nn.Module) -> Footprint:
    """With the network's linear layers held in 8 bits, as ComfyUI holds fp8 models.

    The cast copy of the largest layer comes and goes with each use, among the activations.
    """
    linear = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
    saved = sum(weight.numel() * (weight.element_size() - 1) for weight in linear)
    largest = max((weight.numel() * weight.element_size() for weight in linear), default=0)
    phases = tuple(
        replace(phase, activations=phase.activations + largest) for phase in footprint.phases
    )
    return replace(footprint, weights=footprint.weights - saved, phases=phases)
