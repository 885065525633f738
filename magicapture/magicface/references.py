"""References as the UNet sees them: one row for each picture and prompt, masks at its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .concepts import Reference, exclusive_masks, square


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """The rows that go through the UNet beside the picture, at half the guidance's batch.

    latents: (R,C,h,w), clean. prompts: of each row. masks: (K,1,h,w) float, each concept's share
    of every latent cell. rows: the row of each concept; concepts of one picture share it.
    names, weights: of each concept.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    masks: Tensor
    rows: tuple[int, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the latents in cells."""
        return self.latents.shape[-2], self.latents.shape[-1]

    def noise(self, level: float, seed: int) -> Tensor:
        """Standard normal noise like the latents, another at each noise level, always the same."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + round(level * 1000)) % 2**63)
        return torch.randn(self.latents.shape, generator=generator).to(self.latents)

    def kept(self, concept: int, size: tuple[int, int]) -> Tensor:
        """Which places of a layer's map (h*w,) bool are the concept's; of a small one the best."""
        share = F.adaptive_avg_pool2d(self.masks[concept][None], size).flatten()
        return (share >= min(0.5, float(share.max()))) & (share > 1e-3)


def reference_rows(
    references: Sequence[Reference], side: int, downscale: int, encode: Callable[[Tensor], Tensor]
) -> ReferenceRows:
    """Bring references to squares of `side` pixels and encode them, each picture once.

    encode: images (1,3,H,W) in 0..1 to latents as the UNet takes them; downscale: pixels a cell.
    """
    pictures: list[Reference] = []
    rows = []
    for reference in references:
        same = (
            i
            for i, other in enumerate(pictures)
            if other.prompt == reference.prompt
            and other.image.shape == reference.image.shape
            and torch.equal(other.image, reference.image)
        )
        row = next(same, len(pictures))
        if row == len(pictures):
            pictures.append(reference)
        rows.append(row)
    latents = [encode(square(r.image, side, mirrored=True)[None]) for r in pictures]
    masks = [square(mask, side, mirrored=False) for mask in exclusive_masks(references)]
    return ReferenceRows(
        torch.cat(latents),
        tuple(reference.prompt for reference in pictures),
        F.avg_pool2d(torch.stack(masks), downscale),
        tuple(rows),
        tuple(reference.name for reference in references),
        tuple(reference.weight for reference in references),
    )
