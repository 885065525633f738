"""`magicapture train`."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

from ..adapters import SavedFiles, check_names, lora_file, save_adapter
from ..data import Learnable, load_folder
from ..faces.embed import FaceEmbedder, load_face_embedder
from ..files import check_writable, spare_folders
from ..prompts import as_embeddings
from ..tokens import Concept
from ..training import Trainer, TrainingJob
from .faces import faces_found
from .model import backbone_from
from .options import MAX_SEED, require_range, require_text
from .progress import Progress
from .recipe import recipe_from

logger = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> None:
    """Train on two folders of photos and write a LoRA and an embedding for each token."""
    require_text("--source", arguments.source)
    require_text("--style", arguments.style)
    require_range("--seed", arguments.seed, 0, MAX_SEED)
    require_range("--preview-every", arguments.preview_every, 0)
    require_range("--save-every", arguments.save_every, 0)
    folder: Path = arguments.out_dir
    lora = lora_file(folder, arguments.out)
    embeddings = lora.parent / "embeddings"
    for place in (lora.parent,) if arguments.bundle else (lora.parent, embeddings):
        check_writable(place)
    embedder = None
    if arguments.face_model:
        embedder = load_face_embedder(arguments.face_model, arguments.face_model_input)
    job = _job(arguments, embedder)
    for line in check_names([] if arguments.bundle else job.concepts, [embeddings], lora):
        logger.info("%s", line)
    job.check()  # before gigabytes are read
    backbone = backbone_from(arguments, job.recipe.precision)
    with (
        Progress(lora.with_name(f"{lora.stem}-previews")) as progress,
        Trainer.open(
            job,
            backbone,
            embedder=embedder,
            listener=progress,
            state_folder=arguments.states or folder / "states",
            save_every=arguments.save_every,
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
    files = save_adapter(
        adapter,
        folder,
        embeddings,
        arguments.out,
        bundle=arguments.bundle,
        spare=spare_folders(),
    )
    for note in files.notes:
        logger.warning("%s", note)
    for file in (files.lora, *files.embeddings):
        logger.info("Wrote %s", file)
    logger.info("Next: %s", _next(files, arguments.base))


def _next(files: SavedFiles, base: str) -> str:
    """How the result is used, here and in ComfyUI."""
    adapter = files.adapter
    command = shlex.join(["magicapture", "sample", "--base", base, "--adapter", str(files.lora)])
    where = "the LoRA into models/loras"
    if files.embeddings:
        where += " (Load LoRA), the embeddings into models/embeddings"
    else:
        where += " (Load Adapter)"
    prompt = as_embeddings(adapter.prompt(), adapter.concepts)
    return f"{command}\nIn ComfyUI: {where}. Prompt: {prompt}"


def _job(arguments: argparse.Namespace, embedder: FaceEmbedder | None) -> TrainingJob:
    word, vectors = arguments.class_word, arguments.vectors
    recipe = recipe_from(arguments)
    subject = Concept(arguments.subject_name, "subject", word, vectors)
    style = Concept(arguments.style_name, "style", word, vectors)
    photos, portraits = load_folder(arguments.source), load_folder(arguments.style)
    photos, portraits = faces_found(photos, portraits, arguments, embedder)
    return TrainingJob(
        Learnable(subject, photos), Learnable(style, portraits), recipe, arguments.seed
    )
