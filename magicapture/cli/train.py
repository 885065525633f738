"""`magicapture train`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..adapters import check_names, save_adapter
from ..data import Learnable, load_folder
from ..faces.embed import load_face_embedder
from ..files import safe_name
from ..tokens import Concept
from ..training import Trainer, TrainingJob
from .model import backbone_from
from .progress import Progress
from .recipe import recipe_from

logger = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> None:
    """Train on two folders of photos and write a LoRA and an embedding for each token."""
    folder: Path = arguments.out_dir
    name = safe_name(arguments.out, "output name")
    job = _job(arguments)
    embeddings = folder / "embeddings"
    lora = folder / f"{name}.safetensors"
    for line in check_names(job.concepts, [embeddings], lora):
        logger.info("%s", line)
    job.check()  # before gigabytes are read
    embedder = None
    if arguments.face_model:
        embedder = load_face_embedder(arguments.face_model, arguments.face_model_input)
    backbone = backbone_from(arguments, job.recipe.precision)
    with (
        Progress(folder / f"{name}-previews") as progress,
        Trainer.open(
            job,
            backbone,
            embedder=embedder,
            listener=progress,
            state_folder=folder / "states",
            fresh=arguments.fresh,
        ) as trainer,
    ):
        try:
            adapter = trainer.run(preview_every=arguments.preview_every)
        except KeyboardInterrupt:
            progress.close()
            if trainer.step:
                again = "the same command goes on from there; with --fresh it starts over."
                logger.info("%s", trainer.farewell(again))
            raise
    files = save_adapter(adapter, folder, embeddings, name)
    for file in (files.lora, *files.embeddings):
        logger.info("Wrote %s", file)


def _job(arguments: argparse.Namespace) -> TrainingJob:
    word, vectors = arguments.class_word, arguments.vectors
    return TrainingJob(
        Learnable(
            Concept(arguments.subject_name, "subject", word, vectors),
            load_folder(arguments.source),
        ),
        Learnable(
            Concept(arguments.style_name, "style", word, vectors), load_folder(arguments.style)
        ),
        recipe_from(arguments),
        arguments.seed,
    )
