"""What a loss is given: the rows of a step and what the UNet made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..attention import AttentionCapture, LayerMaps
from ..backbone import Conditioning
from ..config import Phase, Recipe, Task
from ..schedule import Schedule
from ..tokens import Concept, Prompt, TokenVectors
from .equations import masked_reconstruction

IdentityTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Estimates x0 (B,C,h,w), landmarks (B,5,2) and `Schedule.signal` (B,) to the loss (B,)."""


@dataclass(frozen=True)
class Answer:
    """What the model says of a row's noised latents under another prompt, without gradient.

    sign: +1 or -1, as it is added up; lora: whether the model has its LoRA.
    """

    prompt: Prompt
    sign: int = 1
    lora: bool = True


@dataclass(frozen=True)
class Row:
    """One latent put through the UNet.

    latents (1,C,h,w); epsilon its noise; timestep, its level; supervised (1,1,h,w), 1 where the
    reconstruction counts; face (1,1,h,w), 1 on the face, and landmarks (1,5,2) in pixels, None
    where unknown. reconstruct is off for the separate pass of the identity loss. answers: their
    sum is the target in place of the noise, where there are any.
    """

    task: Task
    prompt: Prompt
    latents: Tensor
    epsilon: Tensor
    timestep: float
    supervised: Tensor
    face: Tensor | None = None
    landmarks: Tensor | None = None
    reconstruct: bool = True
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """The step of a training that losses are asked at.

    progress: the share of the phase that is done, 0..1.
    """

    recipe: Recipe
    phase: Phase
    subject: Concept
    style: Concept
    vectors: TokenVectors
    progress: float


@dataclass(frozen=True, eq=False)
class Batch(Step):
    """The rows of a step, noised, and the UNet's answer to them.

    noisy (B,C,h,w) and timesteps (B,); prediction and target (B,C,h,w) float32.
    noise_weights (B,): how much a reconstruction error counts at each row's t.
    capture: holds the attention of this pass, and identity judges faces, where a loss needs them.
    """

    rows: Sequence[Row]
    schedule: Schedule
    conditioning: Conditioning
    noisy: Tensor
    timesteps: Tensor
    prediction: Tensor
    target: Tensor
    noise_weights: Tensor
    capture: AttentionCapture | None = None
    identity: IdentityTerm | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents, in cells."""
        return self.noisy.shape[-2], self.noisy.shape[-1]

    @cached_property
    def errors(self) -> Tensor:
        """The masked error of each row, weighted by its noise (B,)."""
        errors = masked_reconstruction(
            self.prediction,
            self.target,
            torch.cat([row.supervised for row in self.rows]).to(self.prediction),
            normalise_area=self.recipe.normalise_area,
        )
        return errors * self.noise_weights.to(errors)

    @cached_property
    def attention(self) -> list[LayerMaps]:
        """The attention of the tokens in the rows, one entry a layer."""
        assert self.capture is not None, "a loss that reads attention says so in `needs`"
        return self.capture.maps(self.conditioning.positions, self.size)

    @cached_property
    def x0(self) -> Tensor:
        """The estimate of the clean latents (B,C,h,w)."""
        return self.schedule.to_x0(self.prediction, self.noisy, self.timesteps)

    def region(self, row: int, token: str) -> Tensor:
        """M_v (1,1,h,w): where in a row the token's concept is."""
        face = self.rows[row].face
        assert face is not None, "a loss that reads face masks says so in `needs`"
        concept = self.subject if token == self.subject.name else self.style
        return concept.region(face)
