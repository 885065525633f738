"""What the method needs of a latent diffusion model: one small protocol.

The algorithm is written once against `Backbone`; `backbones.diffusers` and the ComfyUI glue in
`nodes/_comfy` fit it to real models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from .attention import Network
from .families import Family, FamilyName
from .latents import LatentMemory
from .parts import Parts
from .schedule import Schedule
from .tokens import Layout, Prompt, TokenVectors


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about the prompts of a batch.

    `context` is (B,L,D). `extra` is what the model is told beside it, by row: SDXL's "pooled", the
    "guidance" of models in which it is distilled, and where texts are as long as they are, how many
    columns are a row's own, its "length". `positions[b][name]` lists the columns of
    `context` that hold the vectors of the token `name`, or the words that say it.
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

    def by_length(self) -> Iterator[tuple[list[int], Conditioning]]:
        """The rows whose texts are of one length, and what they are told, without other columns.

        For networks that take no mask. Without a "length" all rows are of one.
        """
        own = self.extra.get("length")
        lengths = [self.context.shape[1]] * len(self) if own is None else own.tolist()
        for length in dict.fromkeys(lengths):
            rows = [row for row, other in enumerate(lengths) if other == length]
            yield (
                rows,
                Conditioning(
                    self.context[rows, :length],
                    {name: values[rows] for name, values in self.extra.items()},
                    [self.positions[row] for row in rows if self.positions],
                ),
            )


def each_length(
    run: Callable[[Tensor, Tensor, Conditioning, tuple[int, ...]], Tensor],
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """The output (B,...) of a network that takes no mask for words: texts of one length at a time.

    run: one pass of some rows: their noisy latents, timesteps and conditioning, and which they are.
    """
    order, outputs = [], []
    for rows, of in conditioning.by_length():
        order += rows
        outputs.append(run(noisy[rows], timesteps[rows], of, tuple(rows)))
    return torch.cat(outputs)[torch.tensor(order).argsort()]


def distilled_guidance(conditioning: Conditioning, family: Family) -> Tensor | None:
    """What a network that guidance is distilled in is told of it (B,); in training the family's.

    One that asks for it all the same is told the family's own; others None.
    """
    told = conditioning.extra.get("guidance") if family.distilled else None
    if told is not None:
        return told
    value = family.trained_guidance if family.distilled else family.asked_guidance
    return None if value is None else conditioning.context.new_full((len(conditioning),), value)


class Backbone(Protocol):
    """A latent diffusion model: UNet, text encoders, VAE and schedule, all frozen.

    Images are float32 RGB (B,3,H,W) in 0..1; latents (B,C,h,w) are already scaled.
    """

    family: FamilyName
    schedule: Schedule
    latent_channels: int
    downscale: int
    """Image pixels to a latent cell, 8 for Stable Diffusion."""
    latents: LatentMemory | None
    """Of the photos of trainings, for the next ones; None keeps none."""

    @property
    def unet(self) -> nn.Module: ...

    @property
    def attention(self) -> Network:
        """The UNet's attention layers, for taps."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Every network of the model by name."""

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

    def layout(self, encoder: str, prompt: Prompt, vectors: TokenVectors) -> Layout:
        """A prompt as one encoder sees it, with the places of the tokens."""

    def encode_prompts(self, prompts: Sequence[Prompt], vectors: TokenVectors) -> Conditioning:
        """Encode prompts with the token vectors spliced in; gradients reach the vectors.

        A token without vectors in an encoder is spelled there by its phrase.
        """

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output p for latents noised to levels t (B,), as `schedule` defines it.

        What the network itself is told of t, and the sign of its output, are the backbone's own.
        """

    @property
    def picture_encoder(self) -> nn.Module:
        """The VAE's encoder, or a network that has it inside, for what listens to its layers."""

    def encode(self, images: Tensor) -> Tensor:
        """Images to the mode of their latents, without gradient."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images, differentiable and not clamped."""

    @property
    def colours(self) -> Tensor | None:
        """How much red, green and blue a unit of each latent channel is, roughly (C,3).

        None where nobody tells.
        """

    @property
    def has_fast_decoder(self) -> bool:
        """Whether `decode_fast` has a decoder of its own."""

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
