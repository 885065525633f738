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

MOST_CELLS = 32
"""Cells a side of a map of joint attention, as of Stable Diffusion's finest that is looked at. Flux
has 64 at 1024 px: to look from all of them is a tenth of a step (benchmarks/step_operations.py)."""

IdentityTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Estimates x0 (B,C,h,w), landmarks (B,5,2) and `Schedule.signal` (B,) to the loss (B,)."""


@dataclass(frozen=True, eq=False)
class Resemblance:
    """What DINO sees in n estimates x0, in their source photos and in the style's pictures.

    keys, source (n,N,D): of the patches. inside (n,N) in 0..1: how much of a patch is the thing.
    look (n,D) and references (R,D): [CLS]. signal (n,): `Schedule.signal` of each estimate.
    """

    keys: Tensor
    source: Tensor
    inside: Tensor
    look: Tensor
    references: Tensor
    signal: Tensor


DinoTerm = Callable[[Tensor, Tensor, Tensor, Tensor], Resemblance]
"""Estimates x0 and their source's latents (n,C,h,w), the thing's mask (n,1,h,w), signal (n,)."""


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
    capture: holds the attention of this pass, identity judges faces and dino sees things, where a
        loss needs them.
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
    dino: DinoTerm | None = None

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
        return self.capture.maps(self.conditioning.positions, self.size, most=MOST_CELLS)

    @cached_property
    def x0(self) -> Tensor:
        """The estimate of the clean latents (B,C,h,w)."""
        return self.schedule.to_x0(self.prediction, self.noisy, self.timesteps)

    @cached_property
    def resemblance(self) -> Resemblance | None:
        """What DINO sees in the composed rows; None where none is clean enough to show a thing."""
        limit = self.schedule.levels.limit(self.recipe.snr(self.recipe.dino.min_snr))
        chosen = [
            i
            for i, row in enumerate(self.rows)
            if row.task == "composed" and row.reconstruct and row.timestep < limit
        ]
        if not chosen:
            return None
        assert self.dino is not None, "a loss that looks through DINO says so in `needs`"
        rows = [self.rows[i] for i in chosen]
        latents = torch.cat([row.latents for row in rows]).to(self.noisy)
        masks = [torch.ones_like(r.latents[:, :1]) if r.face is None else r.face for r in rows]
        signal = self.schedule.signal(self.timesteps[chosen])
        return self.dino(self.x0[chosen], latents, torch.cat(masks).to(self.noisy), signal)

    def region(self, row: int, token: str) -> Tensor:
        """M_v (1,1,h,w): where in a row the token's concept is."""
        if self.recipe.is_whole(self.style.role) and token == self.style.name:
            return torch.ones_like(self.rows[row].supervised)
        face = self.rows[row].face
        assert face is not None, "a loss that reads face masks says so in `needs`"
        concept = self.subject if token == self.subject.name else self.style
        return concept.region(face)
