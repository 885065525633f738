"""What a step sees: random photos, prompts, noise and timesteps, made into the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..config import Phase, Recipe, Task
from ..data import EncodedVariant, LatentCache
from ..losses import Answer, Row, tasks_of
from ..prompts import class_prompt, fill, with_edit
from ..schedule import Levels
from ..tokens import Concept, Prompt

_SHOWN_COMPOSED: tuple[Task, ...] = ("composed", "words", "unconditional")


@dataclass(frozen=True, eq=False)
class Batches:
    """The rows of each step; every random number comes from the generator handed in.

    levels: of the backbone's schedule. source, reference: the encoded photos of the person and of
    the style. composed: pseudo-labels of their own, None where they are the style's portraits.
    prior: latents (N,C,h,w) of class images, each of `prompts.class_prompt`.
    """

    recipe: Recipe
    levels: Levels
    subject: Concept
    style: Concept
    source: LatentCache
    reference: LatentCache
    composed: LatentCache | None = None
    prior: Tensor | None = None

    def rows(self, phase: Phase, generator: Generator) -> list[Row]:
        """The rows of one batch: each task that the phase needs, or a single one of them."""
        tasks = tasks_of(phase, self.recipe)
        for kept in ("words", "unconditional"):
            every = getattr(self.recipe, kept).every
            if {kept} < set(tasks) and _integer(every, generator):
                tasks.remove(kept)
        if self.recipe.batching == "one_task":
            tasks = [tasks[_integer(len(tasks), generator)]]
        photos: dict[str, EncodedVariant] = {}
        composes = not {*_SHOWN_COMPOSED}.isdisjoint(tasks)
        # A thing is composed in its own photo, through DINO; a person in a portrait of the style.
        composed = "source" if self.recipe.subject_is == "thing" else "style"
        if "source" in tasks or (composes and composed == "source"):
            photos["source"] = self.source.sample(generator)
        if "style" in tasks or (composes and composed == "style"):
            photos["style"] = self.reference.sample(generator)
        if composes:
            own = self.composed
            photos["composed"] = own.sample(generator) if own else photos[composed]
        rows = [self._row_of(task, photos, phase, generator) for task in tasks]
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

    def _row_of(
        self,
        task: Task,
        photos: Mapping[str, EncodedVariant],
        phase: Phase,
        generator: Generator,
    ) -> Row:
        if task == "prior":
            return self._prior_row(phase, generator)
        if task == "words":
            return self._words_row(photos["composed"], phase, generator)
        if task == "unconditional":
            return self._unconditional_row(photos["composed"], phase, generator)
        return self._row(task, photos[task], phase, generator)

    def _row(self, task: Task, photo: EncodedVariant, phase: Phase, generator: Generator) -> Row:
        timestep = self.levels.draw(generator, share=phase.share)
        return Row(
            task,
            self.prompt(task, photo.caption, generator),
            photo.latents,
            _noise(photo.latents, generator),
            timestep,
            self._supervised(task, photo, timestep),
            photo.face_mask,
            photo.landmarks,
        )

    def _supervised(self, task: Task, photo: EncodedVariant, timestep: float) -> Tensor:
        """Where a task's reconstruction counts at t: its concept's region, or everywhere.

        A pseudo-label of its own says what of it shows what is asked for; its face is left to the
        identity loss at weak noise (`LabelSettings.max_snr`).
        """
        everywhere = torch.ones_like(photo.latents[:, :1])
        if task == "composed" and self.composed is not None:
            taught = everywhere if photo.taught is None else photo.taught
            if photo.face_mask is None or not self._face_is_drawn_by_identity(timestep):
                return taught
            return taught * (1 - photo.face_mask)
        whole = task == "style" and self.recipe.is_whole("style")
        if whole or not self.recipe.masked or photo.face_mask is None:
            return everywhere
        return (self.subject if task == "source" else self.style).region(photo.face_mask)

    def _face_is_drawn_by_identity(self, timestep: float) -> bool:
        """Whether the noise is too weak for the label's face to be taught."""
        max_snr = self.recipe.labels.max_snr
        return max_snr is not None and timestep < self.levels.limit(self.recipe.snr(max_snr))

    def _prior_row(self, phase: Phase, generator: Generator) -> Row:
        assert self.prior is not None
        timestep = self.levels.draw(generator, share=phase.share)
        index = _integer(len(self.prior), generator)
        latents = self.prior[index][None]
        prompt = Prompt(class_prompt(self.recipe, self.subject, index))
        everywhere = torch.ones_like(latents[:, :1])
        return Row("prior", prompt, latents, _noise(latents, generator), timestep, everywhere)

    def _words_row(self, photo: EncodedVariant, phase: Phase, generator: Generator) -> Row:
        """A composed row under a prompt with further words (`losses.Words`)."""
        row, settings = self._row("composed", photo, phase, generator), self.recipe.words
        words = settings.edits[_integer(len(settings.edits), generator)]
        index = _integer(len(self.recipe.prompts.prior), generator)
        plain = class_prompt(self.recipe, self.subject, index)
        edited = Prompt(with_edit(plain, words))
        prompt, answers = edited, [Answer(edited, lora=False)]
        if settings.kept == "change":
            prompt = Prompt(with_edit(row.prompt.text, words))
            answers += [Answer(Prompt(plain), -1, lora=False), Answer(row.prompt)]
        return replace(
            row,
            task="words",
            prompt=prompt,
            supervised=torch.ones_like(row.supervised),
            answers=tuple(answers),
        )

    def _unconditional_row(self, photo: EncodedVariant, phase: Phase, generator: Generator) -> Row:
        """A composed row under the empty prompt (`losses.Unconditional`)."""
        row, empty = self._row("composed", photo, phase, generator), Prompt("")
        return replace(
            row,
            task="unconditional",
            prompt=empty,
            supervised=torch.ones_like(row.supervised),
            answers=(Answer(empty, lora=False),),
        )

    def _identity_rows(self, rows: Sequence[Row], phase: Phase, generator: Generator) -> list[Row]:
        """The rows of the identity loss where it has a UNet pass of its own (the release)."""
        settings = self.recipe.identity
        if not (settings.separate_pass and phase.weights["identity"]):
            return []
        min_snr = self.recipe.snr(settings.min_snr)
        return [
            replace(
                row,
                epsilon=_noise(row.latents, generator),
                timestep=self.levels.draw(generator, min_snr=min_snr),
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

    A caption of the source that already names the subject is used as it is.
    """
    if caption and task == "source" and subject.is_named_in(caption):
        return [Prompt(subject.marked(caption))]
    texts = (fill(template, subject, style) for template in getattr(recipe.prompts, task))
    return [Prompt(f"{text}, {caption}" if caption else text) for text in texts]


def _integer(high: int, generator: Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _noise(like: Tensor, generator: Generator) -> Tensor:
    # On the CPU in fp32 whatever the model's device and dtype, so that a seed repeats anywhere.
    return torch.randn(like.shape, generator=generator)
