"""Where the two tokens look, measured on noised true compositions that no run has seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import Adapter
from ..attention import LayerMaps
from ..backbone import Backbone
from ..metrics import leakages
from ..older import snr_between
from ..refocusing import noised_look
from ..tokens import Prompt

SNRS = tuple(map(snr_between, (200, 500, 800)))
"""Of the noised pictures, by the timesteps of Stable Diffusion that have them; falling."""


@dataclass(frozen=True)
class Leakages:
    """Mean over pictures, noise levels and layers, 0..1; see `metrics.Leakage` for mass and peak.

    subject: of the person's token outside the face. style: of the style's token on the face.
    """

    subject: float
    style: float
    subject_peak: float
    style_peak: float


@torch.no_grad()
def token_leakage(
    backbone: Backbone,
    adapter: Adapter,
    images: Tensor,
    faces: Tensor,
    snrs: tuple[float, ...] = SNRS,
) -> Leakages:
    """Leakage of an adapter's tokens; its LoRA is in the backbone (`sampling.adapted`).

    images (B,3,H,W) in 0..1 with their face masks (B,1,H,W), 1 = face. All cross-attention but
    the middle block's is looked at.
    """
    roles = {concept.name: concept.role for concept in adapter.concepts}
    found: dict[str, list[Tensor]] = {"subject": [], "style": []}
    for layer in adapter_maps(backbone, adapter, images, snrs):
        for role, values in found.items():
            own = [i for i, (_, name) in enumerate(layer.keys) if roles[name] == role]
            face = faces[[layer.keys[i][0] for i in own]].to(layer.values)
            inside = face if role == "subject" else 1 - face
            values.append(torch.stack(leakages(layer.values[own], inside), 1).mean(0))
    (subject, subject_peak), (style, style_peak) = (
        torch.stack(found[role]).mean(0).tolist() for role in ("subject", "style")
    )
    return Leakages(subject, style, subject_peak, style_peak)


@torch.no_grad()
def adapter_maps(
    backbone: Backbone, adapter: Adapter, images: Tensor, snrs: tuple[float, ...] = SNRS
) -> Iterator[LayerMaps]:
    """Where an adapter's tokens look in images (B,3,H,W), of each SNR in turn the layers.

    The prompt is the first composed sentence of its training; the noise is always the same.
    """
    latents = backbone.encode(images.to(backbone.device))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    prompt = Prompt(adapter.prompt())
    conditioning = backbone.encode_prompts([prompt] * len(latents), adapter.vectors())
    for snr in snrs:
        level = torch.tensor(backbone.schedule.levels.limit(snr), device=latents.device)
        at = level.expand(len(latents))
        yield from noised_look(backbone, latents, at, conditioning, noise)
