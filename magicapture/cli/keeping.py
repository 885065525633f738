"""`magicapture train --keep`: what checkpoints are kept and measured with, and what is written."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..checkpoints import NO_FACES, Checkpoints, Keep, KeepSettings
from ..clip import PictureEncoder, load_clip
from ..config import Recipe, help_of
from ..errors import InputError, StorageError
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import FaceEmbeddingNetwork, load_face_embedder
from ..faces.find import best, places
from ..losses import needs
from .faces import detector_from, parser_from
from .groups import OWN, add_judge
from .images import save_image
from .latest import Latest
from .model import device_from
from .options import option, setting_option, settings_from
from .outputs import check_report, write_json

logger = logging.getLogger(__name__)

COMMAND = "magicapture train"
NAMES = ("keep", "keep_every", "keep_seeds", "choose", "keep_guidance")
"""The settings that have an option with a value."""

_OF_MODELS = ("judge_model", "judge_model_input", "clip")


def asked_for(arguments: argparse.Namespace) -> bool:
    """Whether any option of checkpoints is given."""
    given = [getattr(arguments, name) for name in (*NAMES, "take")]
    return arguments.stop_early or any(value is not None for value in given)


def settings(arguments: argparse.Namespace, recipe: Recipe) -> KeepSettings | None:
    """What is to be kept, as the options say; None where none is given.

    Raises InputError for options that contradict each other.
    """
    if not asked_for(arguments):
        return None
    found = settings_from(KeepSettings, arguments, (*NAMES, "stop_early"))
    steps = found.steps(recipe)
    if arguments.take is not None and arguments.take not in steps:
        known = ", ".join(map(str, steps))
        raise InputError(f"--take: step {arguments.take} is not kept; expected one of {known}.")
    return found


def checkpoints_from(
    arguments: argparse.Namespace,
    recipe: Recipe,
    loss: FaceEmbeddingNetwork | None,
    latest: Latest,
) -> Checkpoints | None:
    """The checkpoints asked for; None without. loss: the identity loss's face embedder.

    A thing is scored by the DINO of its losses, and no model of faces is read. Raises InputError
    for options that contradict each other, or a choice that nothing measures.
    """
    found = settings(arguments, recipe)
    names = (*_OF_MODELS, "models", "face_model", "face_model_input", "detector", "parser")
    models = recipe.subject_is, loss is None, *(getattr(arguments, name) for name in names)
    wanted = models if found else None  # a job without checkpoints lets the models go
    judges = latest("judges", wanted, lambda: _judges(arguments, recipe, loss) if found else None)
    if found is None or judges is None:
        return None
    analyzer, clip = judges
    if found.choose == "identity" and not (analyzer.embedder or "dino" in needs(recipe)):
        raise InputError(f"--choose identity needs {_lacking(recipe)}, or choose style or last.")
    return Checkpoints(Keep(found, analyzer, clip, loss))


def _judges(
    arguments: argparse.Namespace, recipe: Recipe, loss: FaceEmbeddingNetwork | None
) -> tuple[FaceAnalyzer, PictureEncoder | None]:
    """What measures: faces, and styles where a CLIP model is given."""
    analyzer = _analyzer(arguments, recipe, loss)
    clip = load_clip(arguments.clip) if arguments.clip else None
    if clip is not None:
        clip.model.to(device_from(arguments))
    return analyzer, clip


def _analyzer(
    arguments: argparse.Namespace, recipe: Recipe, loss: FaceEmbeddingNetwork | None
) -> FaceAnalyzer:
    """What looks at faces in the pictures; raises InputError for a judge of faces of a thing."""
    if recipe.subject_is == "person":
        judge = _judge(arguments, loss)
        return FaceAnalyzer(detector_from(arguments), parser_from(arguments), judge)
    if arguments.judge_model:
        raise InputError(
            f"--judge-model compares faces, and the recipe {recipe.name!r} learns a thing: DINO "
            "compares it. Leave the option out."
        )
    return NO_FACES


def _lacking(recipe: Recipe) -> str:
    if recipe.subject_is == "person":
        return "a face recognition model; give one (--judge-model or --face-model)"
    return "the losses that look through DINO; give one of them a weight"


def _judge(
    arguments: argparse.Namespace, loss: FaceEmbeddingNetwork | None
) -> FaceEmbeddingNetwork | None:
    """The face embedder named, else the best found that is not the loss's, else the loss's."""
    file = arguments.judge_model
    if not file:
        try:
            other = Path(loss.name) if loss else None
            file = best("embedder", places(arguments.models), other_than=other)
        except StorageError:
            return loss
        if loss is not None and file.name == loss.name:
            return loss
    return load_face_embedder(file, arguments.judge_model_input).to(device_from(arguments))


def check_files(lora: Path) -> None:
    """Raise InputError where a file is in the way of `write` that this command did not write."""
    json, *others = (file.name for file in _files(lora))
    check_report(lora.parent, json, others, COMMAND)


def write(checkpoints: Checkpoints, lora: Path, made_with: bool) -> list[Path]:
    """Write the scores and the pictures beside the LoRA; returns the files; raises StorageError.

    made_with: as `save_image` has it.
    """
    json, csv, png = _files(lora)
    for line in str(checkpoints).splitlines():
        logger.info("%s", line)
    save_image(checkpoints.grid(), png, "checkpoints of a training", made_with=made_with)
    checkpoints.write_csv(csv)
    write_json(json, checkpoints.as_dict(), COMMAND)
    return [png, csv, json]


def _files(lora: Path) -> tuple[Path, Path, Path]:
    return (
        lora.with_name(f"{lora.stem}-checkpoints.json"),
        lora.with_name(f"{lora.stem}-checkpoints.csv"),
        lora.with_name(f"{lora.stem}-checkpoints.png"),
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of checkpoints."""
    group = parser.add_argument_group(
        "checkpoints",
        "With any of these the adapters of several steps are kept and scored, and the best is "
        "saved.",
    )
    for name in NAMES:
        own = OWN if name == "keep_guidance" else ""
        setting_option(group, KeepSettings, name, shown=own)
    early = help_of(KeepSettings, "stop_early")
    group.add_argument("--stop-early", action="store_true", help=early)
    option(
        group,
        "--take",
        int,
        "Save the adapter of this kept step; of a finished run without training again.",
        shown="the marked one",
        metavar="STEP",
    )
    clip = "A CLIP model that tells how alike styles are: a transformers folder, or a file."
    option(group, "--clip", Path, clip, shown="none, the base model's autoencoder", metavar="PATH")
    add_judge(group, "the best found that is not the identity loss's; else that one")
