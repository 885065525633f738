"""The demo's parts, to train and draw with from Python: nothing but the package is needed."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbones import DiffusersBackbone
from ..config import Recipe
from ..data import Learnable
from ..faces.embed import FaceEmbedder
from ..paperdoll.model import doll_backbone
from ..paperdoll.pairs import Pair, references
from ..paperdoll.weights import loss_embedder
from ..prompts import prompt_for
from ..sampling import SamplingSettings
from ..tokens import Concept
from ..training import TrainingJob
from .drawing import SAMPLING
from .settings import DemoSettings, held_out_pair, recipe_for

SUBJECT, STYLE = Concept("ada", "subject"), Concept("fable", "style")


@dataclass(frozen=True, eq=False)
class DollExample:
    """Drawn photos of a person and of a style, and a small model that draws such faces.

    prompt: the person in the style. sampling: how this model draws, at 128x128.
    """

    job: TrainingJob
    backbone: DiffusersBackbone
    face_model: FaceEmbedder
    prompt: str
    sampling: SamplingSettings = SAMPLING


def doll_example(steps: int | None = None) -> DollExample:
    """What `magicapture demo` trains with, on the CPU; steps: the recipe's own if None."""
    asked = DemoSettings(steps=steps)
    job = doll_job(held_out_pair(asked.identity, asked.style), recipe_for(asked.steps))
    prompt = prompt_for((SUBJECT, STYLE), job.recipe.prompts)
    return DollExample(job, doll_backbone(), loss_embedder(), prompt)


def doll_job(pair: Pair, recipe: Recipe, seed: int = 0) -> TrainingJob:
    """A pair of drawn photo sets as a training job."""
    return TrainingJob(
        Learnable(SUBJECT, references(pair.source)),
        Learnable(STYLE, references(pair.reference)),
        recipe,
        seed,
    )
