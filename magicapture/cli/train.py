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
from .latest import Latest
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
