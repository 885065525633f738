"""Class images for prior preservation (DreamBooth): made by the untouched base model itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbone import Backbone
from ..prompts import class_prompt
from ..sampling import SamplingSettings, sample_latents
from .events import Listener, Prepared
from .job import TrainingJob, generator


def class_latents(backbone: Backbone, job: TrainingJob, on_event: Listener) -> Tensor:
    """Latents (N,C,h,w) of N class images at the training resolution; they are never decoded."""
    recipe, prior = job.recipe, job.recipe.prior
    settings = SamplingSettings(
        steps=prior.steps,
        guidance=prior.guidance,
        sampler="ddim",
        width=recipe.resolution,
        height=recipe.resolution,
    )
    latents = []
    for index in range(prior.images):
        on_event(Prepared("making class images", index, prior.images))
        seed = int(torch.randint(2**31, (), generator=generator(job.seed, "prior", index)))
        prompt = class_prompt(recipe, job.subject.concept, index)
        latents.append(sample_latents(backbone, prompt, settings=settings, seed=seed).cpu())
    on_event(Prepared("making class images", prior.images, prior.images))
    return torch.cat(latents)
