"""What a picture does not tell of a checkpoint: where its tokens look, and what words still do."""

from __future__ import annotations

import statistics
from itertools import islice

import torch
from torch import Tensor

from ..backbone import Backbone
from ..data import EncodedVariant
from ..prompts import class_prompt, prompt_for, with_edit
from ..refocusing import mean_leakage
from ..tokens import Prompt
from ..training import Learned, TrainingJob
from ..training.job import generator
from ..training.look import SHARES, look

PORTRAITS = 4
"""Portraits that the tokens are watched on, at the most."""

WORDS = 4
"""Of the recipe's `words.edits`, evenly spread, those whose effect is measured."""


def leaking(
    learned: Learned, job: TrainingJob, backbone: Backbone, portraits: list[EncodedVariant]
) -> float | None:
    """The share of the tokens' attention outside their regions, 0..1; None without known faces.

    The mean over tokens that have a region, over the portraits (of a thing, its photos) with a
    mask, and as in `refocusing.mean_leakage`; the noise is always the same.
    """
    everywhere = {one.name for one in job.concepts if job.recipe.is_whole(one.role)}
    prompt = prompt_for(job.concepts, job.recipe.prompts)
    found: list[float] = []
    for number, portrait in enumerate(portraits):
        chance = generator(job.seed, "leaking", number)
        with learned.loras.shown():
            seen = look(backbone, prompt, job.concepts, learned.vectors, portrait, chance)
        leaks = mean_leakage(seen)
        found += [share for token, share in leaks.items() if token not in everywhere]
    return statistics.fmean(found) if found else None


class Obedience:
    """How much further words in the prompt still do of what they do in the base model.

    latents (1,C,h,w): of a portrait, which is noised to the levels of `look.SHARES`.
    """

    def __init__(self, job: TrainingJob, backbone: Backbone, latents: Tensor) -> None:
        self.job, self.backbone = job, backbone
        edits = job.recipe.words.edits
        self.words = list(islice(edits, 0, None, max(1, len(edits) // WORDS)))[:WORDS]
        levels = [backbone.schedule.levels.at(1 - share) for share in SHARES]
        self._levels = torch.tensor(levels, device=backbone.device)
        latents = latents.to(backbone.device).expand(len(levels), -1, -1, -1)
        noise = torch.randn(latents.shape, generator=generator(job.seed, "obeying")).to(latents)
        self._noisy = backbone.schedule.add_noise(latents, noise, self._levels)
        self._base: Tensor | None = None

    @torch.no_grad()
    def __call__(self, learned: Learned) -> float:
        """1: all of it; 0: nothing; more where the words do more than in the base model."""
        composed = prompt_for(self.job.concepts, self.job.recipe.prompts)
        with learned.loras.shown():
            if self._base is None:
                plain = class_prompt(self.job.recipe, self.job.concepts[0], 0)
                with learned.loras.off():
                    self._base = self._changes(learned, plain)
            return kept_share(self._changes(learned, composed), self._base)

    def _changes(self, learned: Learned, prompt: str) -> Tensor:
        """What each of the words changes in the answer to a prompt (W,L,C,h,w)."""
        plain = self._answer(learned, prompt)
        answers = [self._answer(learned, with_edit(prompt, words)) for words in self.words]
        return torch.stack([answer - plain for answer in answers])

    def _answer(self, learned: Learned, prompt: str) -> Tensor:
        rows = [Prompt(prompt)] * len(self._levels)
        conditioning = self.backbone.encode_prompts(rows, learned.vectors)
        return self.backbone.predict(self._noisy, self._levels, conditioning).float()


def kept_share(change: Tensor, base: Tensor) -> float:
    """sum(c b) / sum(b b): how much of the change b there is in the change c, of one shape.

    What c does beside b does not count, and what it does against b counts against it.
    """
    return float((change * base).sum() / base.square().sum().clamp_min(1e-12))
