"""Class images for prior preservation (DreamBooth): made by the untouched base model itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbone import Backbone
from ..config import Recipe
from ..losses import tasks_of
from ..prompts import class_prompt
from ..sampling import SamplingSettings, sample_latents
from .events import Listener, Prepared
from .job import TrainingJob, generator


def class_latents(backbone: Backbone, job: TrainingJob, on_event: Listener) -> Tensor:
    """Latents (N,C,h,w) of N class images at the training resolution; they are never decoded.

    No more are made than the run's steps can use.
    """
    recipe, prior = job.recipe, job.recipe.prior
    settings = SamplingSettings(
        steps=prior.steps,
        guidance=prior.guidance,
        sampler="ddim",
        width=recipe.side,
        height=recipe.side,
    )
    count = min(prior.images, _uses(recipe))
    latents = []
    for index in range(count):
        on_event(Prepared("making class images", index, count))
        seed = int(torch.randint(2**31, (), generator=generator(job.seed, "prior", index)))
        prompt = class_prompt(recipe, job.subject.concept, index)
        latents.append(sample_latents(backbone, prompt, settings=settings, seed=seed).cpu())
    on_event(Prepared("making class images", count, count))
    return torch.cat(latents)


def _uses(recipe: Recipe) -> int:
    """How many class images the steps draw, at most."""
    drawing = [phase for phase in recipe.phases if "prior" in tasks_of(phase, recipe)]
    return recipe.accumulation * sum(phase.steps for phase in drawing)
