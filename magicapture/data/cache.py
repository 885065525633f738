"""The latents of a concept's photos, ready before step 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..config import Recipe
from ..errors import InputError, NumericalError
from ..latents import Encoder
from .augment import generator_for, variant
from .masks import to_latent
from .photos import ReferenceSet

Progress = Callable[[int, int], None]

_BATCH_PIXELS = 4 * 512 * 512  # encoded at once: four at 512 px, one at 1024
_ANY = 2**62


@dataclass(frozen=True)
class EncodedVariant:
    """One variant of photo `index` as training sees it.

    latents (1,C,h,w) float32; face_mask (1,1,h,w) float32 in 0..1 or None; landmarks (1,5,2) in
    pixels of the square picture or None; taught (1,1,h,w) float32 in 0..1, where a label may be
    taught, or None for everywhere; on the CPU.
    """

    latents: Tensor
    face_mask: Tensor | None
    landmarks: Tensor | None
    index: int
    caption: str | None
    taught: Tensor | None = None


class LatentCache:
    """Encodes each photo's variants once, or afresh at every request with `recipe.variants` = 0.

    `encode` takes images (B,3,S,S) in 0..1 and returns latents (B,C,S/downscale,S/downscale).
    Everything follows from the arguments, so only `state_dict` needs saving to go on exactly. No
    more variants are made than the recipe's steps can use. A variant at 512 px takes 80 KB.
    `on_progress(done, total)` is called at first and after each batch, and may raise to cancel.
    """

    def __init__(
        self,
        references: ReferenceSet,
        recipe: Recipe,
        encode: Encoder,
        *,
        downscale: int,
        seed: int,
        on_progress: Progress | None = None,
    ) -> None:
        if recipe.side % downscale:
            raise InputError(
                f"The resolution is {recipe.side}; this model needs a multiple of "
                f"{downscale} (of 64 to be safe)."
            )
        self.references, self.recipe, self.encode = references, recipe, encode
        self.downscale, self.seed = downscale, seed
        self._order: list[int] = []  # the photos that the current epoch has yet to show
        self._variants = self._encode_all(on_progress or (lambda done, total: None))

    def sample(self, generator: Generator) -> EncodedVariant:
        """A random variant of the next photo; each photo comes once in every shuffled epoch.

        `generator` is a CPU one and decides both.
        """
        if not self._order:
            self._order = torch.randperm(len(self.references), generator=generator).tolist()
        return self._any_of(self._order.pop(), generator)

    def any(self, generator: Generator) -> EncodedVariant:
        """A random variant of a random photo, whatever the epoch has shown."""
        photo = int(torch.randint(len(self.references), (), generator=generator))
        return self._any_of(photo, generator)

    def each(self) -> Iterator[EncodedVariant]:
        """The first variant of each photo, in their order, whatever the epoch has shown."""
        for index in range(len(self.references)):
            yield self._variants[index][0] if self._variants else self._encode([(index, 0)])[0]

    def _any_of(self, index: int, generator: Generator) -> EncodedVariant:
        variants = self._variants[index] if self._variants else ()
        choice = int(torch.randint(len(variants) or _ANY, (), generator=generator))
        return variants[choice] if variants else self._encode([(index, choice)])[0]

    def state_dict(self) -> dict[str, Any]:
        """Where the current epoch stands."""
        return {"order": list(self._order)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; raises InputError for that of other photos."""
        order = list(state["order"])
        if not set(order) <= set(range(len(self.references))):
            raise InputError("The saved state belongs to another set of photos.")
        self._order = order

    def _encode_all(self, on_progress: Progress) -> list[list[EncodedVariant]]:
        photos = len(self.references)
        used = math.ceil(self.recipe.steps * self.recipe.accumulation / max(1, photos))
        count = min(self.recipe.variants, max(1, used))
        wanted = [(index, number) for index in range(photos) for number in range(count)]
        made: list[EncodedVariant] = []
        on_progress(0, len(wanted))
        at_once = encoded_at_once(self.recipe.side)
        for start in range(0, len(wanted), at_once):
            made += self._encode(wanted[start : start + at_once])
            on_progress(len(made), len(wanted))
        return [made[i : i + count] for i in range(0, len(made), count)] if count else []

    # The executor of ComfyUI runs nodes in inference mode, whose tensors cannot be trained on.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, wanted: Sequence[tuple[int, int]]) -> list[EncodedVariant]:
        """The variants (index of the photo, number of the variant), in one batch."""
        photos = self.references.photos
        variants = [
            variant(photos[index], self.recipe, generator_for(self.seed, index, number))
            for index, number in wanted
        ]
        latents = self.encode(torch.stack([v.image for v in variants])).to("cpu", torch.float32)
        for (index, _), values in zip(wanted, latents, strict=True):
            if not torch.isfinite(values).all():
                raise NumericalError(
                    f"The VAE made NaN or infinite latents of {photos[index].name}; some "
                    "VAEs do in fp16. Use it in fp32 or bf16 (ComfyUI: --fp32-vae), or another VAE."
                )

        def cells(mask: Tensor) -> Tensor:
            return to_latent(mask, self.downscale)

        return [
            EncodedVariant(
                values[None].clone(),
                _batched(v.face_mask, cells),
                _batched(v.landmarks),
                index,
                photos[index].caption,
                _batched(v.taught, cells),
            )
            for (index, _), v, values in zip(wanted, variants, latents, strict=True)
        ]


def encoded_at_once(side: int) -> int:
    """How many pictures of a side in pixels the VAE gets in one batch."""
    return max(1, _BATCH_PIXELS // side**2)


def _batched(
    tensor: Tensor | None, change: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Tensor | None:
    """A tensor, changed, as a batch of one on the CPU; None for None."""
    return None if tensor is None else change(tensor)[None].cpu()
