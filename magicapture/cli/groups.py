"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import LoraSettings, Recipe
from ..faces.embed import NORMALISATIONS
from ..families import transformers
from ..recipes import DEFAULT, RECIPE_NAMES, recipe
from .model import DTYPES
from .options import Group, option, setting_option

OWN = "the base model's own"
"""What stands for a default that the base model decides."""


def add_dino(parser: argparse.ArgumentParser) -> None:
    """The DINO of a thing's losses."""
    option(
        parser.add_argument_group("things", "For the recipe things."),
        "--dino",
        Path,
        "A DINO or DINOv2: torch hub's file, or transformers' file or folder.",
        shown="the best one found",
        metavar="PATH",
    )


def add_recipe(group: Group) -> None:
    """The recipe and its settings."""
    chosen = recipe()
    add = group.add_argument
    add_named_recipe(group)
    option(
        group,
        "--steps",
        int,
        "Steps in all; the phases keep their proportion.",
        shown=f"the recipe's, {chosen.steps} in {DEFAULT}",
    )
    for config, name, value in (
        (LoraSettings, "rank", chosen.lora.rank),
        (Recipe, "resolution", chosen.resolution or OWN),
    ):
        setting_option(group, config, name, shown=f"the recipe's, {value} in {DEFAULT}")
    option(group, "--seed", int, "Seed of the run.", default=0)
    add("--save-memory", action="store_true", help="The same result, slower, in less memory.")
    add(
        "--without-masks",
        action="store_true",
        help="Train on whole pictures, without masks of the faces and attention refocusing.",
    )
    option(
        group,
        "--set",
        str,
        "Change any field of the recipe: lora.rank=16, phases[1].weights.identity=0.25, "
        "phases[*].schedule=linear. May be given again and again; `magicapture recipes NAME` "
        "shows the fields.",
        default=[],
        shown="none",
        action="append",
        metavar="PATH=VALUE",
    )


def add_judge(group: Group, shown: str) -> None:
    """The face recognition model that scores."""
    option(
        group, "--judge-model", str, "The one that scores; another.", shown=shown, metavar="FILE"
    )
    _add_scale(group, "--judge-model-input", "What its pixels are scaled to.")


def add_named_recipe(group: Group) -> None:
    """A recipe by its name, and changes of it."""
    names = f"One of {', '.join(RECIPE_NAMES)}, or a .json file."
    option(group, "--recipe", str, names, default=DEFAULT)


def add_loss_model(group: Group) -> None:
    """The face recognition model of the identity loss."""
    option(
        group,
        "--loss-face-model",
        str,
        "The face recognition model of the training, so that another one measures.",
        shown="as --adapter tells",
        metavar="FILE",
    )
    option(
        group,
        "--adapter",
        Path,
        "The LoRA that train wrote, which names its training's face recognition model.",
        shown="none",
        metavar="FILE",
    )


def add_photos(parser: argparse.ArgumentParser) -> None:
    """Folders of the person's photos and of portraits."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="The photos.")
    add("--style", action="store_true", help="Portraits of a style: their people may differ.")


def add_base(parser: argparse.ArgumentParser) -> None:
    """The base model, and how it computes."""
    base = parser.add_argument_group("base model")
    base.add_argument(
        "--base",
        required=True,
        metavar="PATH",
        help="A Stable Diffusion 1.x, 2.x or XL file, or a diffusers folder (also of "
        f"{transformers()}).",
    )
    option(
        base,
        "--taesd",
        str,
        "A small decoder (TAESD): a file or folder.",
        shown=f"none, {OWN}",
        metavar="PATH",
    )
    add_device(base)
    option(
        base,
        "--precision",
        str,
        "Number format of the base model.",
        shown="bf16 on a GPU, fp32 elsewhere",
        choices=list(DTYPES),
    )


def add_device(group: Group) -> None:
    """The device."""
    option(
        group,
        "--device",
        str,
        "Such as cuda, cuda:1 or cpu.",
        shown="the GPU where there is one",
    )


def add_faces(
    group: Group,
    *,
    parser_model: bool = False,
    face_model: str = "A face recognition model.",
    optional: bool = False,
) -> None:
    """The models that find faces and their parts."""
    add_folder_of_models(group)
    or_none = "; 'none' goes without" if optional else ""
    kinds = {"--detector": "A face detector."}
    if parser_model:
        kinds["--parser"] = "A face parser, which outlines a face; without one a mask is an oval."
    for flag, help in kinds.items():
        found = "the best one found" + (or_none if flag == "--parser" else "")
        option(group, flag, str, help, shown=found, metavar="FILE")
    found = f"the best one found{or_none}"
    option(group, "--face-model", str, face_model, shown=found, metavar="FILE")
    scale = "What the face recognition model's pixels are scaled to."
    _add_scale(group, "--face-model-input", scale)


def _add_scale(group: Group, flag: str, help: str) -> None:
    option(group, flag, str, help, default="arcface", choices=list(NORMALISATIONS))


def add_leave_out(group: Group, what: str) -> None:
    """What becomes of photos that the doctor leaves out."""
    group.add_argument(
        "--leave-out",
        action="store_true",
        help=f"{what} without the photos whose verdict is to leave them out.",
    )


def add_folder_of_models(group: Group) -> None:
    """Where models lie."""
    option(
        group,
        "--models",
        str,
        "Where models are, laid out as ComfyUI's models folder or flat.",
        shown="$MAGICAPTURE_MODELS",
        metavar="DIR",
    )


def add_folder(group: Group, flag: str) -> None:
    """A folder of pictures."""
    where = "the folder you are in"
    option(group, flag, Path, "Where to write.", default=Path(), shown=where, metavar="DIR")


def add_no_made_with(group: Group) -> None:
    """Whether files say what made them."""
    group.add_argument(
        "--no-made-with",
        action="store_true",
        help="Do not say in the files that MagiCapture made them.",
    )


def add_json(group: Group) -> None:
    """A report as data."""
    option(group, "--json", Path, "Write the report as JSON.", shown="none", metavar="FILE")
