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

from ..adapters import SavedFiles, lora_file
from ..files import check_writable, spare_folders
from ..prompts import as_embeddings
from ..training import EVERY_STEPS
from . import keeping
from .groups import (
    add_base,
    add_dino,
    add_faces,
    add_folder,
    add_leave_out,
    add_no_made_with,
    add_recipe,
)
from .latest import Latest
from .options import option
from .progress import Progress, clock
from .training import Training, check_values

logger = logging.getLogger(__name__)


def train(arguments: argparse.Namespace) -> None:
    """Train on two folders of photos and write a LoRA and an embedding for each token."""
    check_values(arguments)
    folder: Path = arguments.out_dir
    lora = lora_file(folder, arguments.out)
    places = [lora.parent] if arguments.bundle else [lora.parent, lora.parent / "embeddings"]
    for place in places:
        check_writable(place)
    latest = Latest()
    training = Training.of(arguments, latest)
    for line in training.check_files(folder, arguments.out):
        logger.info("%s", line)
    training.job.check()  # before gigabytes are read
    training = training.on(latest)
    previews = lora.with_name(f"{lora.stem}-previews")
    states = arguments.states or folder / "states"
    with (
        Progress(previews, not arguments.no_made_with) as progress,
        training.opened(progress, states, fresh=arguments.fresh) as trainer,
    ):
        try:
            started, before = time.monotonic(), trainer.step
            adapter = training.run(trainer)
            progress.close()
            seconds, steps = time.monotonic() - started, trainer.step - before
            logger.info(
                "%s", f"Trained {steps} steps of {trainer.recipe.name} in {clock(seconds)}."
            )
        except KeyboardInterrupt:
            progress.close()
            if trainer.step:
                again = "the same command goes on from there; with --fresh it starts over."
                logger.info("%s", trainer.farewell(again))
            raise
    files = training.save(adapter, folder, arguments.out, spare_folders())
    for note in files.notes:
        logger.warning("%s", note)
    scores = training.save_scores(folder, arguments.out)
    for file in (files.lora, *files.embeddings, *scores):
        logger.info("Wrote %s", file)
    if scores:
        logger.info("To have another: the same command with --take STEP.")
    for line in _next(files, arguments):
        logger.info("%s", line)


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`, which a job of a batch has as well."""
    photos = parser.add_argument_group("photos and tokens")
    add = photos.add_argument
    add("--source", required=True, metavar="DIR", help="The person's photos.")
    add("--style", required=True, metavar="DIR", help="Portraits in the style.")
    for flag, help, default, shown in (
        ("--subject-name", "The person's token.", "my-person", "NAME"),
        ("--style-name", "The style's token.", "my-style", "NAME"),
        ("--class-word", "The ordinary noun: woman, man, dog.", "person", "WORD"),
    ):
        option(photos, flag, str, help, default=default, metavar=shown)
    option(
        photos,
        "--vectors",
        int,
        "Vectors that each token has. 0 trains none: prompts say the token's phrase, in ordinary "
        "words, and the LoRA alone carries it.",
        default=1,
    )
    for whose, flag in (("person", "--subject-phrase"), ("style", "--style-phrase")):
        option(
            photos,
            flag,
            str,
            f"With --vectors 0: the ordinary words for the {whose}, best rare ones.",
            shown="the token's name",
            metavar="WORDS",
        )
    faces = parser.add_argument_group(
        "faces", "Where a photo has no mask or landmarks, they are found, and the photo is judged."
    )
    add_leave_out(faces, "Train")
    add_faces(
        faces,
        parser_model=True,
        face_model="A face recognition model, .onnx or TorchScript .pt, for the identity loss.",
        optional=True,
    )
    add_dino(parser)
    add_base(parser)
    settings = parser.add_argument_group("recipe")
    add_recipe(settings)
    option(
        settings,
        "--fit",
        float,
        "Change batching, checkpointing and resolution, as little as it takes, to fit in so many "
        "GB, or without a number in the memory there is.",
        shown="the settings stay",
        nargs="?",
        const=0.0,
        metavar="GB",
    )
    settings.add_argument(
        "--anyway", action="store_true", help="Train though the memory will not be enough."
    )
    keeping.add_options(parser)
    result = parser.add_argument_group("result")
    add = result.add_argument
    add("--out", required=True, metavar="NAME", help="Name of the LoRA's file, without ending.")
    add_folder(result, "--out-dir")
    add("--bundle", action="store_true", help="One file to share: the tokens inside the LoRA's.")
    option(
        result,
        "--consent",
        str,
        "Who agreed to this training and how, kept in the files.",
        default="",
        shown="nothing is said",
        metavar="WORDS",
    )
    add_no_made_with(result)
    option(
        result,
        "--preview-every",
        int,
        "Draw a picture every N steps and at the end; 0 draws none.",
        default=0,
        metavar="N",
    )
    option(
        result,
        "--states",
        Path,
        "Where stopped runs are kept.",
        shown="states in the folder of --out-dir",
        metavar="DIR",
    )
    option(
        result,
        "--save-every",
        int,
        "Save the run every N steps, and every minute; 0: every minute alone.",
        default=EVERY_STEPS,
        metavar="N",
    )
    add("--fresh", action="store_true", help="Start over, though a stopped run could go on.")
