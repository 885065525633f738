"""What is found out about the base model before step 1, so that no run fails half-way."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from ..attention import AttentionCapture, captured, cross_attentions
from ..backbone import Backbone
from ..config import FIXED, Recipe, Task
from ..data import Learnable
from ..dino import Dino
from ..errors import InputError, NumericalError, UnsupportedModelError
from ..families import FAMILIES, transformers
from ..lora import check_peft
from ..losses import needs
from ..prompts import prompt_for
from ..tokens import Prompt, TokenVectors, check_new_word
from .batches import prompts_for
from .blocks import looked_at
from .job import TrainingJob, generator
from .optim import optimizer_class

_LARGE = 512  # pixels a side
_LONG = 10  # pieces of a phrase


def check_backbone(job: TrainingJob, backbone: Backbone) -> None:
    """Raise for a model, a token's name or an optimiser that the job cannot work with."""
    if not cross_attentions(backbone.unet):
        raise UnsupportedModelError(
            "The base model has no attention that reads the prompt; MagiCapture runs on Stable "
            f"Diffusion 1.x, 2.x and XL, {transformers('and')}."
        )
    family = FAMILIES[backbone.family]
    if job.recipe.side % family.cell:
        raise InputError(
            f"The resolution {job.recipe.side} cannot be trained: {family.title} takes pictures of "
            f"multiples of {family.cell} px a side."
        )
    for concept in job.concepts:
        check_new_word(concept, backbone.text_encoders, backbone.word_ids)
    optimizer_class(job.recipe.optimizer)  # its package may be missing
    if any(phase.rates.unet or phase.rates.text_encoder for phase in job.recipe.phases):
        check_peft()


def check_dino(job: TrainingJob, dino: Dino | None) -> None:
    """Raise InputError where the recipe looks through DINO and there is none."""
    if "dino" in needs(job.recipe) and dino is None:
        raise InputError(
            f"The recipe {job.recipe.name!r} compares pictures through DINO, and no DINO model is "
            "given. Give one (--dino; in ComfyUI: Load DINO at the input dino of Train "
            "MagiCapture), or train without: set the weights dino_structure, dino_patches and "
            "dino_style to 0 (--set; Tune Recipe). The composed prompt is then not trained."
        )


def phrase_advice(job: TrainingJob, backbone: Backbone) -> Iterator[str]:
    """Warnings for vectors that the base model does not learn, and a phrase that fills a prompt.

    job: as it was asked for.
    """
    family = FAMILIES[backbone.family]
    for concept in job.concepts:
        if concept.vectors and family.learns:
            continue
        words = concept.spelled.words
        if concept.vectors:
            yield (
                f"{family.title} learns no vectors of a token: prompts say {concept.token} by the "
                f"words {words!r}, and the LoRA alone carries it. To choose the words, set its "
                "vectors to 0 and give it a phrase."
            )
        pieces = max(len(backbone.word_ids(key, words)) for key in backbone.text_encoders)
        if pieces > _LONG:
            yield (
                f"The text encoder cuts the phrase {words!r} of {concept.token} into {pieces} "
                "pieces, which leaves a prompt little room; a word or two carry as much."
            )


def decoder_advice(job: TrainingJob, backbone: Backbone) -> Iterator[str]:
    """A warning where a loss would decode large pictures by the whole VAE.

    Backward through the face's part of it keeps several GB above 512 px, the tiny one's some
    hundred MB; DINO is shown the whole picture, which costs as much at 512 px.
    """
    side, family = job.recipe.side, FAMILIES[backbone.family]
    decoder = f"Give {family.decoder} as the fast decoder: Load VAE in ComfyUI"
    decoder += ", --taesd on the command line." if family.taesd else ", which alone reads it."
    if "dino" in needs(job.recipe) and side >= _LARGE and not backbone.has_fast_decoder:
        yield (
            f"DINO's losses decode whole pictures at {side} px by the whole VAE, which takes "
            f"several GB. {decoder}"
        )
    if "face model" in needs(job.recipe) and side > _LARGE and not backbone.has_fast_decoder:
        yield (
            f"The identity loss decodes faces at {side} px by the whole VAE, which takes several "
            f"GB. {decoder}"
        )


def blocks_advice(job: TrainingJob, backbone: Backbone) -> Iterator[str]:
    """A warning where the recipe chooses blocks of a transformer, and the model is none."""
    family, blocks = FAMILIES[backbone.family], job.recipe.refocus.blocks
    if family.network == "unet" and blocks != FIXED and "attention" in needs(job.recipe):
        yield (
            f"refocus.blocks ({blocks}) has no effect on {family.title}, whose network is a UNet: "
            "its attention layers are chosen by refocus.factors."
        )


@torch.no_grad()
def check_prompts(job: TrainingJob, backbone: Backbone, vectors: TokenVectors) -> None:
    """Encode every sentence that the run may draw; raises InputError for one that is too long."""
    tasks: tuple[tuple[Task, Learnable], ...] = (
        ("source", job.subject),
        ("style", job.style),
        ("composed", job.style),
    )
    for task, learnable in tasks:
        for photo in {photo.caption: photo for photo in learnable.photos}.values():
            try:
                prompts = prompts_for(task, photo.caption, job.recipe, *job.concepts)
                backbone.encode_prompts(prompts, vectors)
            except InputError as error:
                raise InputError(
                    f"{photo.name}: {error}" if photo.caption else str(error)
                ) from error


@torch.no_grad()
def probe(job: TrainingJob, backbone: Backbone, vectors: TokenVectors) -> None:
    """Run the UNet once; raises for NaN, and for attention maps that it does not have."""
    side = job.recipe.side // backbone.downscale
    shape = (1, backbone.latent_channels, side, side)
    latents = torch.randn(shape, generator=generator(job.seed, "probe")).to(backbone.device)
    prompt = Prompt(prompt_for(job.concepts, job.recipe.prompts))
    conditioning = backbone.encode_prompts([prompt], vectors)
    timestep = torch.tensor([backbone.schedule.levels.at(1)], device=backbone.device)
    refocused = "attention" in needs(job.recipe)
    with refocusing_capture(backbone, job.recipe) if refocused else nullcontext() as capture:
        with capture.recording() if capture else nullcontext():
            output = backbone.predict(latents, timestep, conditioning)
        if capture:
            capture.maps(conditioning.positions, (side, side))
    if not output.isfinite().all():
        raise NumericalError(
            f"The base model returns NaN or infinity in {output.dtype} before any training. Train "
            "in bf16 or fp32, or use another checkpoint."
        )


def refocusing_capture(
    backbone: Backbone, recipe: Recipe, blocks: Collection[str] = ()
) -> AbstractContextManager[AttentionCapture]:
    """The capture of the attention layers that the recipe refocuses.

    blocks: those that were measured, where they were. A transformer's maps are all of one size, so
    there is none to choose.
    """
    refocus = recipe.refocus
    sites = looked_at(backbone, refocus, blocks)
    one_size = FAMILIES[backbone.family].network == "transformer"
    return captured(backbone.attention, sites, factors=None if one_size else refocus.factors)
