"""What a phase or a recipe asks for, by the losses that have a weight in it."""

from __future__ import annotations

from typing import get_args

from ..config import Phase, Recipe, Task
from ..loss import LOSSES, Need


def needs(of: Recipe | Phase) -> frozenset[Need]:
    """What must be made ready for the losses that a phase, or any phase that runs, gives weight."""
    phases = [of] if isinstance(of, Phase) else [phase for phase in of.phases if phase.steps]
    used = {name for phase in phases for name, weight in phase.weights.items() if weight}
    return frozenset().union(*(LOSSES[name].needs for name in used))


def tasks_of(phase: Phase, recipe: Recipe) -> list[Task]:
    """The tasks whose rows a phase's losses ask for, in the order of the batch."""
    used = [LOSSES[name] for name, weight in phase.weights.items() if weight]
    wanted = {task for loss in used for task in loss.tasks(recipe)}
    return [task for task in get_args(Task) if task in wanted]
