"""What `train` says and does before its first step: what it needs, and settings that fit."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from ..backbones import DiffusersBackbone
from ..dino import Dino
from ..faces.embed import FaceEmbedder
from ..planning import GB, Watch, attempted, fitting
from ..training import Event, Listener, TrainingJob

logger = logging.getLogger(__name__)

_LESS = (
    "Take --save-memory, a lower --resolution or a --taesd, let --fit choose, or go on in spite of "
    "it with --anyway."
)


def fitted(
    arguments: argparse.Namespace,
    job: TrainingJob,
    backbone: DiffusersBackbone,
    embedder: FaceEmbedder | None,
    dino: Dino | None = None,
) -> TrainingJob:
    """The job with the first settings that fit, where --fit asks for it; else as it is."""
    if arguments.fit is None:
        return job
    space = arguments.fit * GB or None
    choice, _ = fitting(job, backbone, embedder, dino, space)
    if choice.options:
        logger.warning("To fit: %s (%s).", choice.title, choice.options)
    chosen = choice.recipe
    recipe = replace(
        job.recipe,
        batching=chosen.batching,
        checkpointing=chosen.checkpointing,
        resolution=chosen.resolution,
    )
    return replace(job, recipe=recipe)


def announced(
    arguments: argparse.Namespace,
    job: TrainingJob,
    backbone: DiffusersBackbone,
    embedder: FaceEmbedder | None,
    dino: Dino | None = None,
) -> Watch | None:
    """Say what the job needs; raises OutOfMemoryError where it cannot run, but for --anyway.

    Returns what follows the run; None where nothing is known of it.
    """
    plan = attempted(job, backbone, embedder, dino, arguments.preview_every)
    if plan is None:
        return None
    logger.info("%s", plan.line())
    if not arguments.anyway:
        plan.refuse(_LESS)
    if shortage := plan.shortage():
        logger.warning("%s %s", shortage, "It may stop half-way; --fit chooses settings that fit.")
    return Watch(plan, backbone.device, lambda line: logger.info("%s", line))


def heard(first: Listener, watch: Watch | None) -> Listener:
    """A listener, and after it the watch where there is one."""

    def both(event: Event) -> None:
        first(event)
        if watch is not None:
            watch(event)

    return both
