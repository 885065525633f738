"""What the method needs of a latent diffusion model: one small protocol, and the schedule's maths.

The algorithm is written once against `Backbone`; `backbones.diffusers` and the ComfyUI glue in
`nodes/_comfy` fit it to real models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .attention import Network
from .families import FamilyName
from .parts import Parts
from .tokens import Prompt, TokenVectors

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process q(z_t | z) and the algebra between epsilon, v and x0.

    `alphas_cumprod` is (T,) float32, falling from almost 1 at t = 0 (clean) towards 0. Every
    method takes latents (B,C,H,W) and integer timesteps (B,) in 0..T-1.
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType = "epsilon"

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar_t) and sqrt(1 - abar_t), shaped (B,1,1,1) to multiply `like`."""
        abar = self.alphas_cumprod.to(device=like.device, dtype=torch.float32)
        abar = abar[timesteps.to(like.device)].reshape(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)

    def add_noise(self, latents: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) epsilon."""
        signal, noise = self.signal_and_noise(timesteps, latents)
        return signal * latents + noise * epsilon

    def target(self, latents: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
        """The training target: epsilon, or v = sqrt(abar_t) epsilon - sqrt(1 - abar_t) z."""
        if self.prediction_type == "epsilon":
            return epsilon
        signal, noise = self.signal_and_noise(timesteps, latents)
        return signal * epsilon - noise * latents

    def to_x0(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Tweedie's estimate of the clean latent: (z_t - sqrt(1-abar_t) epsilon) / sqrt(abar_t)."""
        signal, noise = self.signal_and_noise(timesteps, noisy)
        if self.prediction_type == "v_prediction":
            return signal * noisy - noise * prediction
        return (noisy - noise * prediction) / signal


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about the prompts of a batch.

    `context` is (B,L,D). `extra` is what the model is told beside it, by row: SDXL's "pooled".
    `positions[b][name]` lists the columns of `context` that hold the vectors of the token `name`.
    """

    context: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Sequence[Mapping[str, Sequence[int]]] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice) -> Conditioning:
        """The conditioning of some rows of the batch."""
        return Conditioning(
            self.context[rows],
            {name: values[rows] for name, values in self.extra.items()},
            self.positions[rows],
        )


class Backbone(Protocol):
    """A latent diffusion model: UNet, text encoders, VAE and schedule, all frozen.

    Images are float32 RGB (B,3,H,W) in 0..1; latents (B,C,h,w) are already scaled.
    """

    family: FamilyName
    schedule: NoiseSchedule
    latent_channels: int
    downscale: int
    """Image pixels to a latent cell, 8 for Stable Diffusion."""

    @property
    def unet(self) -> nn.Module: ...

    @property
    def attention(self) -> Network:
        """The UNet's attention layers, for taps."""

    @property
    def text_encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders by the key their embeddings have in files: "clip_l", "clip_g"."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the UNet computes."""

    def word_ids(self, encoder: str, text: str) -> list[int]:
        """The ids of `text` in one encoder's vocabulary, without start, end and padding."""

    def word_vectors(self, encoder: str, text: str) -> Tensor:
        """The input embeddings (n,width) float32 of `text`, to initialise a token from."""

    def encode_prompts(self, prompts: Sequence[Prompt], vectors: TokenVectors) -> Conditioning:
        """Encode prompts with the token vectors spliced in; gradients reach the vectors."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's own output (epsilon or v, see `schedule`) for latents noised to t (B,)."""

    def encode(self, images: Tensor) -> Tensor:
        """Images to the mode of their latents, without gradient."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images, differentiable and not clamped."""

    def decode_fast(self, latents: Tensor) -> Tensor:
        """`decode` by a smaller decoder where there is one; for losses and previews."""

    def parts_of(self, module: nn.Module) -> Parts:
        """What diffusers calls each submodule of the UNet or of an encoder: a Part or, fused, some.

        The adapter speaks diffusers' names alone, whatever the UNet's own layout is.
        """

    def checkpointed_modules(self) -> Iterator[nn.Module]:
        """The blocks of the UNet whose activations gradient checkpointing recomputes."""

    def fingerprint(self) -> str:
        """A hash of all in the model that can change a training's result, outside of `training`.

        It does not depend on where the weights lie, nor on what was computed with them before.
        """

    def training(self, dtype: torch.dtype | None) -> AbstractContextManager[None]:
        """A scope in which gradients flow through the frozen models, computing in `dtype`.

        None keeps the model's own. Everything is restored on the way out.
        """
