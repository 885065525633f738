"""Where the tokens look while a run is on, beside every preview."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backbone import Backbone
from ..data import EncodedVariant
from ..refocusing import Recorder, Sight, foci, sights
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
) -> list[Sight]:
    """What the prompt's tokens look at in a noised portrait in the style: one pass of the UNet.

    Where the portrait's face is not known there is no leakage.
    """
    latents = portrait.latents.to(backbone.device)
    noise = torch.randn(portrait.latents.shape, generator=noise_from).to(latents)
    last = len(backbone.schedule) - 1
    levels = torch.tensor([round((1 - share) * last) for share in SHARES], device=latents.device)
    rows = [Prompt(prompt)] * len(SHARES)
    conditioning = backbone.encode_prompts(rows, vectors)
    tokens = foci(backbone, rows, conditioning, vectors, concepts)
    recorder = Recorder(backbone.unet)
    with recorder.recording():
        noisy = backbone.schedule.add_noise(
            latents.expand(len(rows), -1, -1, -1), noise.expand(len(rows), -1, -1, -1), levels
        )
        backbone.predict(noisy, levels, conditioning)
    maps = recorder.maps(tokens, (latents.shape[-2], latents.shape[-1]))
    region = None if portrait.face_mask is None else portrait.face_mask[0, 0]
    return [
        sight
        for row, share in enumerate(SHARES)
        for sight in sights(maps, row, tokens[row], region, share)
    ]
