"""What a step sees: random draws of photos, prompts, noise and timesteps, made into rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..config import Phase, Recipe, Task
from ..data import CachedDraw, LatentCache
from ..prompts import fill
from ..tokens import Concept, Prompt
from .objective import Row


class Draws:
    """Draws the rows of one step; every random number comes from the generator handed in."""

    def __init__(
        self,
        recipe: Recipe,
        subject: Concept,
        style: Concept,
        caches: tuple[LatentCache, LatentCache],
        prior: Tensor | None = None,
        composed: LatentCache | None = None,
    ) -> None:
        self.recipe, self.subject, self.style = recipe, subject, style
        self.source, self.reference = caches
        self.composed = composed  # pseudo-labels of their own; None takes the portraits
        self.prior = prior

    def rows(self, phase: Phase, generator: Generator) -> list[Row]:
        """The rows of one draw: each task that the phase needs, or a single one of them."""
        tasks = tasks_of(phase, self.recipe)
        if self.recipe.batching == "one_task":
            tasks = [tasks[_integer(len(tasks), generator)]]
        draws: dict[str, CachedDraw] = {}
        if "source" in tasks:
            draws["source"] = self.source.sample(generator)
        if {"style", "composed"} & set(tasks):
            draws["style"] = draws["composed"] = self.reference.sample(generator)
        if "composed" in tasks and self.composed:
            draws["composed"] = self.composed.sample(generator)
        rows = [self._row(task, draws, phase, generator) for task in tasks]
        return rows + self._identity_rows(rows, phase, generator)

    def portrait(self, generator: Generator) -> CachedDraw:
        """A variant of one portrait; the run's own draws go on as if it had not been drawn."""
        before = self.reference.state_dict()
        self.reference.load_state_dict({"order": []})
        try:
            return self.reference.sample(generator)
        finally:
            self.reference.load_state_dict(before)

    def state_dict(self) -> dict[str, Any]:
        """Where the photos' epochs stand."""
        return {name: cache.state_dict() for name, cache in self._caches.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name, cache in self._caches.items():
            cache.load_state_dict(state[name])

    @property
    def _caches(self) -> dict[str, LatentCache]:
        caches = {"source": self.source, "reference": self.reference, "composed": self.composed}
        return {name: cache for name, cache in caches.items() if cache is not None}

    def _row(
        self, task: Task, draws: dict[str, CachedDraw], phase: Phase, generator: Generator
    ) -> Row:
        timestep = _integer(phase.max_timestep, generator)
        if task == "prior":
            assert self.prior is not None
            latents = self.prior[_integer(len(self.prior), generator)][None]
            everything = torch.ones_like(latents[:, :1])
            prompt = self.prompt(task, None, generator)
            noise = _noise(latents, generator)
            return Row(task, prompt, latents, noise, timestep, everything, everything)
        draw = draws[task]
        masked = self.recipe.masked and not (task == "composed" and self.composed)
        face = draw.mask if task == "source" else 1 - draw.mask
        return Row(
            task,
            self.prompt(task, draw.caption, generator),
            draw.latents,
            _noise(draw.latents, generator),
            timestep,
            draw.mask if masked else torch.ones_like(draw.mask),
            face,
            draw.landmarks,
        )

    def _identity_rows(self, rows: Sequence[Row], phase: Phase, generator: Generator) -> list[Row]:
        """The rows of the identity loss where it has a UNet pass of its own (C)."""
        settings = self.recipe.identity
        if not (settings.separate_pass and phase.weights.identity):
            return []
        return [
            replace(
                row,
                epsilon=_noise(row.latents, generator),
                timestep=_integer(settings.max_timestep, generator),
                reconstruct=False,
            )
            for row in rows
            if row.task in settings.tasks
        ]

    def prompt(self, task: Task, caption: str | None, generator: Generator) -> Prompt:
        """One of the task's sentences, with the photo's own caption where it has one.

        A caption of the source that already holds the token is used as it is.
        """
        if caption and task == "source" and self.subject.token in caption:
            return Prompt(caption)
        templates = getattr(self.recipe.prompts, task)
        text = fill(templates[_integer(len(templates), generator)], self.subject, self.style)
        return Prompt(f"{text}, {caption}" if caption else text)


def tasks_of(phase: Phase, recipe: Recipe) -> list[Task]:
    """The tasks that a phase's weights ask for, in the order of the batch.

    Attention and identity act on tasks that run; identity alone also calls for its own.
    """
    wanted = {t for t in ("source", "style", "composed", "prior") if getattr(phase.weights, t)}
    if phase.weights.identity:
        wanted |= set(recipe.identity.tasks)
    return [task for task in ("source", "style", "composed", "prior") if task in wanted]  # type: ignore[misc]


def _integer(high: int, generator: Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _noise(like: Tensor, generator: Generator) -> Tensor:
    # On the CPU in fp32 whatever the model's device and dtype, so that a seed repeats anywhere.
    return torch.randn(like.shape, generator=generator)
