"""Where the tokens look while a run is on, beside every preview."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backbone import Backbone
from ..data import EncodedVariant
from ..refocusing import TokenMap, foci, noised_look, token_maps
from ..tokens import Concept, Prompt, TokenVectors

SHARES = (0.2, 0.5, 0.8)
"""How much of the sampling is done at the noise levels that are looked at."""


@torch.no_grad()
def look(
    backbone: Backbone,
    prompt: str,
    concepts: Sequence[Concept],
    vectors: TokenVectors,
    portrait: EncodedVariant,
    noise_from: torch.Generator,
) -> list[TokenMap]:
    """What the prompt's tokens look at in a noised portrait in the style: one pass of the UNet.

    Where the portrait's face is not known there is no leakage.
    """
    latents = portrait.latents.to(backbone.device)
    noise = torch.randn(latents.shape, generator=noise_from).to(latents)
    at = backbone.schedule.levels.at
    levels = torch.tensor([at(1 - share) for share in SHARES], device=latents.device)
    rows = [Prompt(prompt)] * len(SHARES)
    conditioning = backbone.encode_prompts(rows, vectors)
    tokens = foci(backbone, rows, conditioning, vectors, concepts)
    same, noise = (x.expand(len(rows), -1, -1, -1) for x in (latents, noise))
    maps = noised_look(backbone, same, levels, conditioning, noise)
    region = None if portrait.face_mask is None else portrait.face_mask[0, 0]
    return [
        token_map
        for row, share in enumerate(SHARES)
        for token_map in token_maps(maps, row, tokens[row], region, share)
    ]
