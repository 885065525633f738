"""Which blocks of a transformer carry the maps, measured before step 1 on the person's photos.

Families do not agree on it: in joint attention some blocks part a word's place from the rest, and
others mix everything. So the base model itself is asked where its class word looks.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ..attention import Attention, Run, agreement, block_of, blocks, select
from ..backbone import Backbone
from ..config import AUTO, FIXED, RefocusSettings
from ..errors import InputError
from ..families import FAMILIES
from ..losses import needs
from ..prompts import class_prompt
from ..refocusing import word_columns
from ..tokens import Prompt, TokenVectors
from .batches import Batches
from .events import Listener, Prepared, Warned
from .job import TrainingJob, generator

logger = logging.getLogger(__name__)

SNR = 1.0
"""Of the photos' noise: picture and noise are equally strong."""

MOST, SHARE = 5, 1 / 3
"""How many blocks are kept: so many, and no larger share of all there are."""


def is_measured(job: TrainingJob, backbone: Backbone) -> bool:
    """Whether a run's blocks are those that are measured."""
    transformer = FAMILIES[backbone.family].network == "transformer"
    return transformer and "attention" in needs(job.recipe) and job.recipe.refocus.blocks == AUTO


def measured(
    job: TrainingJob, backbone: Backbone, batches: Batches, tell: Listener
) -> dict[str, float]:
    """The blocks that agree best with the faces, best first, each with its agreement.

    Empty where no photo shows it; the fixed ones are then looked at.
    """
    subject = job.concepts[0]
    found = best(agreements(job, backbone, batches, tell))
    if not found:
        tell(
            Warned(
                "Which blocks carry the maps cannot be measured, since no photo has a mask with "
                "cells of the attention's size inside and outside. The fixed ones are looked at."
            )
        )
        return {}
    logger.info("Maps from %s.", listed(found))
    if next(iter(found.values())) <= 0.5:
        tell(
            Warned(
                f"No block's map of the word {subject.class_word!r} agrees with the faces of the "
                f"photos (AUC {listed(found)}; 0.5 is chance). Give a class word of what they "
                "show, or set refocus.blocks to fixed."
            )
        )
    return found


@torch.no_grad()
def agreements(
    job: TrainingJob, backbone: Backbone, batches: Batches, tell: Listener
) -> dict[str, float]:
    """The agreement of each block's map of the class word with the faces, the mean over photos.

    One pass a photo, of the neutral prompt, at SNR; maps are made in the pass and nothing else is
    kept of it. Photos without a mask, or whose mask is all or nothing, do not count; empty where
    none counts. The noise follows from the job's seed.
    """
    subject, sites = job.concepts[0], {site: name for name, site in blocks(backbone.unet).items()}
    prompt, nothing = Prompt(class_prompt(job.recipe, subject, 0)), TokenVectors({})
    conditioning = backbone.encode_prompts([prompt], nothing)
    columns = word_columns(backbone, prompt, nothing, subject.class_word)
    if not columns:
        raise InputError(
            f"refocus.blocks is {AUTO}, but the prompt {prompt.text!r} is without the class word "
            f"{subject.class_word!r}, whose maps it measures. Write {{noun}} into the first of "
            "prompts.prior, or choose other blocks."
        )
    word = torch.zeros(1, conditioning.context.shape[1], 1, device=backbone.device)
    word[:, list(columns)] = 1
    maps: dict[str, Tensor] = {}

    def tap(attention: Attention, run: Run) -> Tensor:
        if attention.size is not None:
            maps[attention.site] = attention.shares(word)[..., 0].unflatten(1, attention.size)
        return run(attention)

    chance = generator(job.seed, "blocks")
    level = torch.tensor([backbone.schedule.levels.limit(SNR)], device=backbone.device)
    found: dict[str, list[Tensor]] = {}
    total = len(batches.source.references)
    for done, photo in enumerate(batches.source.each()):
        tell(Prepared("looking where the blocks look", done, total))
        noise = torch.randn(photo.latents.shape, generator=chance)
        if photo.face_mask is None:
            continue
        latents = photo.latents.to(backbone.device)
        noisy = backbone.schedule.add_noise(latents, noise.to(latents), level)
        with backbone.attention.tapped(tap, sites):
            backbone.predict(noisy, level, conditioning)
        for site, values in maps.items():
            found.setdefault(site, []).append(agreement(values, photo.face_mask.to(values)).cpu())
    tell(Prepared("looking where the blocks look", total, total))
    means = {sites[site]: float(torch.cat(values).nanmean()) for site, values in found.items()}
    return {name: value for name, value in means.items() if value == value}


def best(found: Mapping[str, float]) -> dict[str, float]:
    """Those of the highest agreement, best first: at least one, at most MOST, and SHARE of all."""
    count = min(MOST, max(1, round(SHARE * len(found))))
    return dict(sorted(found.items(), key=lambda item: -item[1])[:count])


def listed(found: Mapping[str, float]) -> str:
    """Blocks and their agreement in a line: "double_blocks.2 0.91, single_blocks.0 0.88"."""
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items())


def looked_at(
    backbone: Backbone, settings: RefocusSettings, found: Collection[str] = ()
) -> list[str]:
    """The layers that a recipe refocuses; found: the blocks that were measured, if they were.

    Raises InputError for the name of a block that the transformer does not have.
    """
    network = backbone.unet
    if FAMILIES[backbone.family].network == "unet" or settings.blocks == FIXED:
        return select(network, middle=settings.middle)
    if settings.blocks == AUTO:
        return [blocks(network)[name] for name in found] or select(network)
    known, names = blocks(network), settings.blocks.replace(",", " ").split()
    for name in names:
        if block_of(name) not in known:
            raise InputError(
                f"refocus.blocks: the model has no block {name!r}; expected {AUTO}, {FIXED} or "
                f"some of {', '.join(known)}."
            )
    return [known[name] for name in dict.fromkeys(map(block_of, names))]
