"""A few real steps on pictures of noise, so that a plan is measured rather than reckoned."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..backbone import Backbone
from ..config import Recipe
from ..data import Learnable, ReferenceSet
from ..dino import Dino
from ..faces.embed import FaceEmbedder
from ..tokens import Concept
from ..training import Trainer, TrainingJob
from .plan import Plan
from .records import Records
from .watch import Watch

_PHOTOS = 5
_FACE = 0.4, 0.52
"""Half the width and height of a face, of half the picture's: a sixth of the picture."""


def noise_job(recipe: Recipe, side: int, class_word: str = "person") -> TrainingJob:
    """A job of five pictures of noise of each, with an oval for a face; side: in pixels."""
    axis = torch.linspace(-1, 1, side)
    width, height = _FACE
    face = ((axis[None] / width) ** 2 + (axis[:, None] / height) ** 2 <= 1).float()[None]

    def photos(seed: int) -> ReferenceSet:
        chance = torch.Generator().manual_seed(seed)
        pictures = torch.rand(_PHOTOS, 3, side, side, generator=chance)
        return ReferenceSet.of(tuple(pictures), face_masks=(face,) * _PHOTOS)

    subject = Concept("my-person", "subject", class_word)
    style = Concept("my-style", "style", class_word)
    return TrainingJob(
        Learnable(subject, photos(1)), Learnable(style, photos(2)), recipe
    ).with_landmarks()


def tried(
    job: TrainingJob,
    backbone: Backbone,
    embedder: FaceEmbedder | None,
    plan: Plan,
    steps: int,
    records: Records,
    dino: Dino | None = None,
) -> Watch:
    """Take so many steps of each phase; what was measured is kept in `records`, nothing else is."""
    short = tuple(
        replace(phase, steps=min(steps, phase.steps), warmup=0) for phase in job.recipe.phases
    )
    job = replace(job, recipe=replace(job.recipe, phases=short))
    watch = Watch(plan, backbone.device, lambda line: None, records, after=steps)
    with Trainer.open(job, backbone, embedder=embedder, dino=dino, listener=watch) as trainer:
        watch.begin()
        trainer.run()
    return watch
