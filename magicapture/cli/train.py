"""`magicapture train`."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import list2cmdline

from ..adapters import (
    Adapter,
    SavedFiles,
    check_consent,
    check_names,
    credited,
    lora_file,
    save_adapter,
)
from ..config import Recipe
from ..data import Learnable, load_folder
from ..faces.embed import FaceEmbedder
from ..files import check_writable, spare_folders
from ..prompts import as_embeddings
from ..tokens import Concept
from ..training import Trainer, TrainingJob
from . import keeping
from .faces import faces_found, judges_from
from .fit import announced, fitted, heard
from .model import backbone_from
from .options import MAX_SEED, require_range, require_text
from .progress import Progress, clock
from .recipe import recipe_from

logger = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> None:
    """Train on two folders of photos and write a LoRA and an embedding for each token."""
    check_values(arguments)
    folder: Path = arguments.out_dir
    lora = lora_file(folder, arguments.out)
    embeddings = lora.parent / "embeddings"
    for place in (lora.parent,) if arguments.bundle else (lora.parent, embeddings):
        check_writable(place)
    recipe = recipe_from(arguments)
    embedder, dino = judges_from(arguments, recipe)
    job = job_from(arguments, recipe, embedder)
    for line in check_names([] if arguments.bundle else job.concepts, [embeddings], lora):
        logger.info("%s", line)
    checkpoints = keeping.checkpoints_from(arguments, job.recipe, embedder)
    if checkpoints:
        keeping.check_files(lora)
    job.check()  # before gigabytes are read
    backbone = backbone_from(arguments, job.recipe.precision)
    previews, made_with = lora.with_name(f"{lora.stem}-previews"), not arguments.no_made_with
    job = fitted(arguments, job, backbone, embedder, dino)
    watch = announced(arguments, job, backbone, embedder, dino)
    with (
        Progress(previews, made_with) as progress,
        Trainer.open(
            job,
            backbone,
            embedder=embedder,
            dino=dino,
            listener=heard(progress, watch),
            state_folder=arguments.states or folder / "states",
            save_every=arguments.save_every,
            fresh=arguments.fresh,
        ) as trainer,
    ):
        try:
            if watch is not None:
                watch.begin()
            started, before = time.monotonic(), trainer.step
            adapter = trainer.run(preview_every=arguments.preview_every, keeping=checkpoints)
            progress.close()
            seconds, steps = time.monotonic() - started, trainer.step - before
            logger.info("%s", f"Trained {steps} steps of {job.recipe.name} in {clock(seconds)}.")
        except KeyboardInterrupt:
            progress.close()
            if trainer.step:
                again = "the same command goes on from there; with --fresh it starts over."
                logger.info("%s", trainer.farewell(again))
            raise
    if checkpoints:
        adapter = checkpoints.adapter(arguments.take)
    files = save_adapter(
        credited_by(arguments, adapter),
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
    if checkpoints:
        keeping.write(checkpoints, lora, made_with)
    for line in _next(files, arguments):
        logger.info("%s", line)


def check_values(arguments: argparse.Namespace) -> None:
    """Raise InputError for a value of `train`'s options that is empty or out of its range."""
    require_text("--source", arguments.source)
    require_text("--style", arguments.style)
    require_range("--seed", arguments.seed, 0, MAX_SEED)
    require_range("--preview-every", arguments.preview_every, 0)
    require_range("--save-every", arguments.save_every, 0)
    check_consent(arguments.consent)
    require_range("--fit", arguments.fit or 0, 0)


def credited_by(arguments: argparse.Namespace, adapter: Adapter) -> Adapter:
    """The adapter with what `train`'s options have its files say of their making."""
    base, made_with = Path(arguments.base).stem, not arguments.no_made_with
    return credited(adapter, arguments.consent, made_with, base=base)


def job_from(
    arguments: argparse.Namespace, recipe: Recipe, embedder: FaceEmbedder | None
) -> TrainingJob:
    """The job of `train`'s options: photos read, faces found; raises InputError, StorageError."""
    word, vectors = arguments.class_word, arguments.vectors
    named = arguments.subject_name, arguments.style_name
    phrases = arguments.subject_phrase, arguments.style_phrase
    subject = Concept(named[0], "subject", word, vectors, phrase=phrases[0])
    style = Concept(named[1], "style", word, vectors, phrase=phrases[1])
    photos, portraits = load_folder(arguments.source), load_folder(arguments.style)
    both = Learnable(subject, photos), Learnable(style, portraits)
    return TrainingJob(*faces_found(*both, arguments, recipe, embedder), recipe, arguments.seed)


def _next(files: SavedFiles, arguments: argparse.Namespace) -> Iterator[str]:
    """What to do with what was written, the command to copy among it."""
    adapter = files.adapter
    prompt = adapter.prompt()
    device = ["--device", arguments.device] if arguments.device else []
    words = ["magicapture", "sample", "--base", arguments.base, "--adapter", str(files.lora)]
    words += [*device, "--prompt", prompt]
    yield "To draw pictures:"
    yield f"  {list2cmdline(words) if os.name == 'nt' else shlex.join(words)}"
    if not adapter.tokens:
        yield (
            "In ComfyUI, or any program with LoRAs: put it into models/loras, and load it with "
            "Load LoRA. Prompt:"
        )
    elif files.embeddings:
        yield (
            "In ComfyUI, or any program with LoRAs and embeddings: put the LoRA into models/loras, "
            "the embeddings into models/embeddings, and load it with Load LoRA. Prompt:"
        )
    else:
        yield "In ComfyUI: put the LoRA into models/loras, and load it with Load Adapter. Prompt:"
    yield f"  {as_embeddings(prompt, adapter.concepts)}"
