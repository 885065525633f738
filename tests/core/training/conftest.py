"""A tiny job: four pictures of each, an ellipse for a face, all tasks and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from magicapture.config import (
    IdentitySettings,
    LoraSettings,
    Phase,
    PriorSettings,
    Rates,
    Recipe,
    RefocusSettings,
    Weights,
)
from magicapture.data import Learnable, ReferenceSet
from magicapture.tokens import Concept
from magicapture.training import TrainingJob

SIDE = 128


def ellipse(side: int = SIDE) -> torch.Tensor:
    """A face's mask (1,H,W)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (((x - 64) / 30) ** 2 + ((y - 60) / 40) ** 2 <= 1).float()[None]


def pictures(count: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Smooth random pictures (3,H,W)."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return tuple(nn.functional.interpolate(noise, (SIDE, SIDE), mode="bicubic").clamp(0, 1))


class TinyEmbedder(nn.Module):
    """A small convolutional face embedder, frozen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, 4),
            nn.Tanh(),
            nn.Conv2d(8, 8, 5, 4),
            nn.Flatten(),
            nn.Linear(288, 16),
        )
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.layers(faces)


RECIPE = Recipe(
    name="tiny",
    phases=(
        Phase("tokens", 3, Rates(tokens=1e-2), Weights(source=1, style=1)),
        Phase(
            "both",
            4,
            Rates(tokens=1e-3, unet=1e-2),
            Weights(source=1, style=1, composed=1, identity=1, attention=1),
            schedule="cosine",
            warmup=1,
        ),
    ),
    lora=LoraSettings(rank=4),
    refocus=RefocusSettings(factors=(1, 2)),
    identity=IdentitySettings(min_snr=0.383 / 16),  # t < 500 at this side
    prior=PriorSettings(images=2, steps=2),
    resolution=SIDE,
    variants=2,
)


@pytest.fixture
def recipe() -> Recipe:
    return RECIPE


@pytest.fixture
def embedder() -> TinyEmbedder:
    return TinyEmbedder()


@pytest.fixture
def make_job() -> Callable[..., TrainingJob]:
    """Build a job; keywords change the recipe."""

    def make(seed: int = 0, **changes: Any) -> TrainingJob:
        masks = (ellipse(),) * 4
        return TrainingJob(
            Learnable(
                Concept("ada-1", "subject", "woman"),
                ReferenceSet.of(pictures(4, 1), face_masks=masks),
            ),
            Learnable(
                Concept("oil-1", "style", vectors=2),
                ReferenceSet.of(pictures(4, 2), face_masks=masks),
            ),
            replace(RECIPE, **changes),
            seed,
        )

    return make
