"""`magicapture train`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..adapters import check_names, lora_file, save_adapter
from ..data import load_folder
from ..faces.embed import load_face_embedder
from ..files import check_writable, spare_folders
from ..tokens import Concept
from ..training import Trainer, TrainingJob
from .model import backbone_from
from .progress import Progress
from .recipe import recipe_from

logger = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> None:
    """Train on two folders of photos and write a LoRA and an embedding for each token."""
    folder: Path = arguments.out_dir
    lora = lora_file(folder, arguments.out)
    job = _job(arguments)
    embeddings = lora.parent / "embeddings"
    for place in (lora.parent, embeddings):
        check_writable(place)
    for line in check_names((job.subject, job.style), [embeddings], lora):
        logger.info("%s", line)
    job.check()  # before gigabytes are read
    embedder = None
    if arguments.face_model:
        embedder = load_face_embedder(arguments.face_model, arguments.face_model_input)
    backbone = backbone_from(arguments, job.recipe.precision)
    with Progress(lora.with_name(f"{lora.stem}-previews")) as progress:
        trainer = Trainer(
            job,
            backbone,
            embedder=embedder,
            listener=progress,
            state_folder=folder / "states",
            fresh=arguments.fresh,
        )
        try:
            with trainer:
                adapter = trainer.run(preview_every=arguments.preview_every)
        except KeyboardInterrupt:
            progress.close()
            if trainer.step:
                logger.info(
                    "Stopped after step %d of %d. Nothing is lost: the same command goes on from "
                    "there; with --fresh it starts over.",
                    trainer.step,
                    trainer.steps,
                )
            raise
    files = save_adapter(adapter, folder, embeddings, arguments.out, spare=spare_folders())
    for note in files.notes:
        logger.warning("%s", note)
    for file in (files.lora, *files.embeddings):
        logger.info("Wrote %s", file)


def _job(arguments: argparse.Namespace) -> TrainingJob:
    word, vectors = arguments.class_word, arguments.vectors
    return TrainingJob(
        Concept(arguments.subject_name, "subject", word, vectors),
        load_folder(arguments.source, "subject"),
        Concept(arguments.style_name, "style", word, vectors),
        load_folder(arguments.style, "style"),
        recipe_from(arguments),
        arguments.seed,
    )
