"""What a run makes before step 1: token vectors, encoded photos, class images, identity target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from torch import nn

from ..backbone import Backbone
from ..config import Recipe
from ..data import LatentCache, ReferenceSet, with_faces_of
from ..faces.embed import FaceEmbedder
from ..identity import IdentityLoss, colour_blind, embeddings
from ..tokens import Concept, TokenVectors, initial_vectors
from .draws import Draws
from .events import Listener, Prepared, Warned
from .job import TrainingJob, digest, generator
from .prior import class_latents


@dataclass(frozen=True)
class Materials:
    """What every step works with. `fingerprint` names the run: job, base model, face embedder."""

    vectors: TokenVectors
    draws: Draws
    identity: IdentityLoss | None
    fingerprint: str


def prepare(
    job: TrainingJob, backbone: Backbone, embedder: FaceEmbedder | None, tell: Listener
) -> Materials:
    """Make the materials of a run; the models are open for training already."""
    job = job.with_landmarks()
    vectors = TokenVectors(
        {
            concept.name: initial_vectors(
                _with_start(concept, job.recipe),
                list(backbone.text_encoders),
                backbone.word_vectors,
                generator(job.seed, "vectors", concept.name),
            )
            for concept in (job.subject, job.style)
        }
    ).to(backbone.device)
    source = _encoded(job.source, job, backbone, "encoding the subject's photos", tell)
    reference = _encoded(job.reference, job, backbone, "encoding the style's portraits", tell)
    composed = None
    if job.recipe.pseudo_label == "face_laid_in" and job.recipe.uses("composed"):
        labels = with_faces_of(job.reference, job.source)
        composed = _encoded(labels, job, backbone, "encoding the pseudo-labels", tell)
    prior = class_latents(backbone, job, tell) if job.recipe.uses("prior") else None
    identity = _identity(job, backbone, embedder, tell) if job.recipe.uses("identity") else None
    networks: list[object] = [backbone.unet, *backbone.text_encoders.values()]
    if identity is not None:
        networks.append(embedder)
    return Materials(
        vectors,
        Draws(job.recipe, job.subject, job.style, (source, reference), prior, composed),
        identity,
        digest(job.fingerprint(), *(weights_hash(network) for network in networks)),
    )


def _with_start(concept: Concept, recipe: Recipe) -> Concept:
    """The concept with what its vectors start from: its own word for it, or the recipe's."""
    if concept.role == "subject" and concept.init is None and recipe.subject_init == "random":
        return replace(concept, init="random")
    return concept


def _encoded(
    references: ReferenceSet, job: TrainingJob, backbone: Backbone, stage: str, tell: Listener
) -> LatentCache:
    return LatentCache(
        references,
        job.recipe,
        backbone.encode,
        downscale=backbone.downscale,
        seed=generator(job.seed, stage).initial_seed(),
        on_progress=lambda done, total: tell(Prepared(stage, done, total)),
    )


def _identity(
    job: TrainingJob, backbone: Backbone, embedder: FaceEmbedder | None, tell: Listener
) -> IdentityLoss | None:
    """The identity loss, or None with a warning where something it needs is missing."""
    if embedder is None:
        tell(
            Warned(
                "No face recognition model is given, so the identity loss is off and the likeness "
                "will be weaker. Connect one, or set the identity weight to 0."
            )
        )
        return None
    source = job.source
    known = [
        (image, mark)
        for image, mark in zip(source.images, source.landmarks, strict=True)
        if mark is not None
    ]
    if not known or all(mark is None for mark in job.reference.landmarks):
        tell(
            Warned(
                "The faces' places are not known (no masks and no landmarks), so the identity "
                "loss is off. Give masks of the faces."
            )
        )
        return None
    if isinstance(embedder, nn.Module):
        embedder.to(backbone.device)
    if job.recipe.identity.colour_blind:
        embedder = colour_blind(embedder)
    images, landmarks = zip(*known, strict=True)
    target = embeddings(embedder, images, landmarks, backbone.device)
    return IdentityLoss(
        embedder, backbone.decode_fast, backbone.downscale, target, job.recipe.identity
    )


def weights_hash(network: object) -> str:
    """A hash that tells networks apart, from a thin sample of the weights."""
    result = hashlib.sha256(type(network).__qualname__.encode())
    parameters = network.named_parameters() if isinstance(network, nn.Module) else ()
    for name, parameter in sorted(parameters):
        thin = parameter.detach().flatten()[:: max(1, parameter.numel() // 16)][:16]
        result.update(f"{name}{tuple(parameter.shape)}{thin.float().tolist()}".encode())
    return result.hexdigest()
