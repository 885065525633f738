"""A short run of a tiny model on drawn photos, all tasks and losses, and what measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from magicapture.checkpoints import Checkpoints, Keep, KeepSettings
from magicapture.config import (
    LoraSettings,
    Phase,
    Rates,
    Recipe,
    RefocusSettings,
    Weights,
)
from magicapture.data import Learnable
from magicapture.paperdoll.faces import doll_analyzer
from magicapture.paperdoll.pairs import Pair, make_pair, references
from magicapture.paperdoll.weights import loss_embedder
from magicapture.sampling import SamplingSettings
from magicapture.tokens import Concept
from magicapture.training import TrainingJob

SIDE = 64
SAMPLING = SamplingSettings("ddim", steps=2, width=SIDE, height=SIDE)
RECIPE = Recipe(
    name="tiny",
    phases=(
        Phase("tokens", 1, Rates(tokens=1e-2), Weights(source=1, style=1)),
        Phase(
            "both",
            2,
            Rates(tokens=1e-3, unet=1e-2),
            Weights(source=1, style=1, composed=1, attention=1, identity=1),
        ),
    ),
    lora=LoraSettings(rank=2),
    refocus=RefocusSettings(factors=(1, 2)),
    resolution=SIDE,
    variants=1,
)


@pytest.fixture(scope="session")
def pair() -> Pair:
    return make_pair(1_000_000, 1_000_099, photos=2, poses=1)


@pytest.fixture
def job(pair: Pair) -> TrainingJob:
    return TrainingJob(
        Learnable(Concept("ada-1", "subject", "woman"), references(pair.source)),
        Learnable(Concept("oil-1", "style"), references(pair.reference)),
        RECIPE,
    )


@pytest.fixture(scope="session")
def face_model() -> Any:
    """Of the identity loss."""
    return loss_embedder()


@pytest.fixture
def checkpoints(face_model: Any) -> Callable[..., Checkpoints]:
    """Checkpoints of two seeds by the networks of drawn faces; keywords change the settings."""
    analyzer = replace(doll_analyzer(), parser=None)

    def make(**settings: Any) -> Checkpoints:
        chosen = KeepSettings(**{"keep": 2, "keep_seeds": 2, **settings})
        return Checkpoints(Keep(chosen, analyzer, loss=face_model, sampling=SAMPLING))

    return make
