"""Pictures by an adapter, and where its tokens look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import Adapter
from ..backbone import Backbone
from ..config import Recipe
from ..paperdoll import SIZE
from ..paperdoll.attention import adapter_maps
from ..paperdoll.edits import Edit
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample
from ..training import Listener, Prepared

SAMPLING = SamplingSettings("dpmpp_2m", steps=20, guidance=2.5, width=SIZE, height=SIZE)
RESULTS, EDITED = 8, 2
"""Pictures of the composed prompt, and of each edit of it."""

_TOGETHER = 4  # pictures in a batch, so that the progress bar moves


@dataclass(frozen=True, eq=False)
class Drawing:
    """results (RESULTS,3,H,W) of the composed prompt; by edit (EDITED,3,H,W) of the same seeds."""

    results: Tensor
    edited: Mapping[Edit, Tensor]


def draw(
    backbone: Backbone, adapter: Adapter, edits: Sequence[Edit], seed: int, listener: Listener
) -> Drawing:
    """Draw the composed prompt and edits of it; the adapter's LoRA is in the backbone already."""
    stage = "drawing" if adapter.lora else "drawing without training"
    count = RESULTS + EDITED * len(edits)
    done = 0

    def some(words: str, number: int) -> Tensor:
        nonlocal done
        parts = []
        for start in range(0, number, _TOGETHER):
            rows = min(_TOGETHER, number - start)
            settings = replace(SAMPLING, edit=words)
            prompts, vectors = [prompt_of(adapter)] * rows, adapter.vectors()
            parts.append(sample(backbone, prompts, vectors, settings, seed=seed + start))
            done += rows
            listener(Prepared(stage, done, count))
        return torch.cat(parts)

    return Drawing(some("", RESULTS), {edit: some(edit.words, EDITED) for edit in edits})


def prompt_of(adapter: Adapter, words: str = "") -> str:
    """The first composed sentence of the adapter's training, with words behind it."""
    recipe = adapter.recipe or Recipe()
    return prompt_for(adapter.concepts, recipe.prompts, extra=words)


@torch.no_grad()
def mean_maps(backbone: Backbone, adapter: Adapter, images: Tensor) -> dict[str, Tensor]:
    """Where each token looks in images (B,3,H,W): by its name (B,h,w), 1 at a map's peak.

    The mean over the cross-attention layers and over three timesteps, at the latents' size.
    """
    size = (images.shape[-2] // backbone.downscale, images.shape[-1] // backbone.downscale)
    sums = {name: torch.zeros(len(images), *size) for name in adapter.names}
    for layer in adapter_maps(backbone, adapter, images):
        maps = F.interpolate(layer.values[:, None], size, mode="bilinear")[:, 0].cpu()
        for (row, name), values in zip(layer.keys, maps, strict=True):
            sums[name][row] += values
    return {name: maps / maps.amax((1, 2), keepdim=True) for name, maps in sums.items()}
