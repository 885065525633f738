"""What a step sees: random photos, prompts, noise and timesteps, made into the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..config import Phase, Recipe, Task
from ..data import EncodedVariant, LatentCache
from ..losses import Row, tasks_of
from ..prompts import class_prompt, fill
from ..tokens import Concept, Prompt


@dataclass(frozen=True, eq=False)
class Batches:
    """The rows of each step; every random number comes from the generator handed in.

    source, reference: the encoded photos of the person and of the style. composed: pseudo-labels
    of their own, None where they are the style's portraits. prior: latents (N,C,h,w) of class
    images, each of `prompts.class_prompt`.
    """

    recipe: Recipe
    subject: Concept
    style: Concept
    source: LatentCache
    reference: LatentCache
    composed: LatentCache | None = None
    prior: Tensor | None = None

    def rows(self, phase: Phase, generator: Generator) -> list[Row]:
        """The rows of one batch: each task that the phase needs, or a single one of them."""
        tasks = tasks_of(phase, self.recipe)
        if self.recipe.batching == "one_task":
            tasks = [tasks[_integer(len(tasks), generator)]]
        photos: dict[str, EncodedVariant] = {}
        if "source" in tasks:
            photos["source"] = self.source.sample(generator)
        if {"style", "composed"} & set(tasks):
            photos["style"] = photos["composed"] = self.reference.sample(generator)
        if "composed" in tasks and self.composed:
            photos["composed"] = self.composed.sample(generator)
        rows = [
            self._prior_row(phase, generator)
            if task == "prior"
            else self._row(task, photos[task], phase, generator)
            for task in tasks
        ]
        return rows + self._identity_rows(rows, phase, generator)

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

    def _row(self, task: Task, photo: EncodedVariant, phase: Phase, generator: Generator) -> Row:
        timestep = _integer(phase.max_timestep, generator)
        return Row(
            task,
            self.prompt(task, photo.caption, generator),
            photo.latents,
            _noise(photo.latents, generator),
            timestep,
            self._supervised(task, photo),
            photo.face_mask,
            photo.landmarks,
        )

    def _supervised(self, task: Task, photo: EncodedVariant) -> Tensor:
        """Where a task's reconstruction counts: its concept's region, or everywhere.

        A pseudo-label of its own says what of it shows what is asked for.
        """
        own_label = task == "composed" and self.composed is not None
        if own_label and photo.taught is not None:
            return photo.taught
        if not self.recipe.masked or own_label or photo.face_mask is None:
            return torch.ones_like(photo.latents[:, :1])
        return (self.subject if task == "source" else self.style).region(photo.face_mask)

    def _prior_row(self, phase: Phase, generator: Generator) -> Row:
        assert self.prior is not None
        timestep = _integer(phase.max_timestep, generator)
        index = _integer(len(self.prior), generator)
        latents = self.prior[index][None]
        prompt = Prompt(class_prompt(self.recipe, self.subject, index))
        everywhere = torch.ones_like(latents[:, :1])
        return Row("prior", prompt, latents, _noise(latents, generator), timestep, everywhere)

    def _identity_rows(self, rows: Sequence[Row], phase: Phase, generator: Generator) -> list[Row]:
        """The rows of the identity loss where it has a UNet pass of its own (the release)."""
        settings = self.recipe.identity
        if not (settings.separate_pass and phase.weights["identity"]):
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
        """One of the photo's sentences for a task."""
        sentences = prompts_for(task, caption, self.recipe, self.subject, self.style)
        return sentences[_integer(len(sentences), generator)]


def prompts_for(
    task: Task, caption: str | None, recipe: Recipe, subject: Concept, style: Concept
) -> list[Prompt]:
    """The sentences of a task, with a photo's own caption where it has one.

    A caption of the source that already holds the token is used as it is.
    """
    if caption and task == "source" and subject.token in caption:
        return [Prompt(caption)]
    texts = (fill(template, subject, style) for template in getattr(recipe.prompts, task))
    return [Prompt(f"{text}, {caption}" if caption else text) for text in texts]


def _integer(high: int, generator: Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _noise(like: Tensor, generator: Generator) -> Tensor:
    # On the CPU in fp32 whatever the model's device and dtype, so that a seed repeats anywhere.
    return torch.randn(like.shape, generator=generator)
