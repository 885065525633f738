"""What may be asked for on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ..batch import BatchSettings
from ..bench import BenchSettings
from ..checkpoints import KeepSettings
from ..config import LabelSettings, LoraSettings, Recipe, help_of
from ..demo import FAST_STEPS, DemoSettings
from ..faces.embed import NORMALISATIONS
from ..faces.masks import MaskSettings
from ..families import transformers
from ..prompts import PromptKind
from ..recipes import DEFAULT, RECIPE_NAMES, recipe
from ..refocusing import RefocusGuidance
from ..sampling import SamplingSettings
from ..training import EVERY_STEPS
from ..version import __version__
from .batch import batch
from .bench import COUNTS, bench
from .card import card
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .identity import identity
from .keeping import NAMES as KEPT
from .labels import SETTINGS, labels
from .masks import masks
from .model import DTYPES
from .models import models
from .options import Group, Parser, option, setting_option
from .plan import plan
from .recipe import recipes
from .sample import DRAWN_BY, sample
from .train import train

_OWN = "the base model's own"


def parser() -> argparse.ArgumentParser:
    """The parser; what it returns holds the command to run as `run`."""
    root = Parser(
        prog="magicapture",
        description="A person's face in a portrait's style, learned from a few photos of each.",
    )
    root.add_argument("--version", action="version", version=f"magicapture {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for command, add in (
        (demo, _add_demo),
        (train, add_train),
        (plan, _add_plan),
        (batch, _add_batch),
        (sample, _add_sample),
        (card, _add_card),
        (masks, _add_masks),
        (doctor, _add_doctor),
        (labels, _add_labels),
        (identity, _add_identity),
        (evaluate, _add_evaluate),
        (bench, _add_bench),
        (models, _add_models),
        (recipes, _add_recipes),
    ):
        help = command.__doc__ or ""
        one = commands.add_parser(
            add.__name__.lstrip("_").removeprefix("add_"), help=help, description=help
        )
        add(one)
        one.add_argument("--verbose", action="store_true", help="Show where an error arose.")
        one.set_defaults(run=command)
    return root


def _add_demo(parser: argparse.ArgumentParser) -> None:
    for name in ("identity", "style", "seed", "model"):
        setting_option(parser, DemoSettings, name)
    parser.add_argument(
        "--fast", action="store_true", help=f"{FAST_STEPS} steps: a minute, and a rougher result."
    )
    option(
        parser,
        "--out",
        Path,
        "The folder to write result.png, curves.png and scores.json into.",
        default=Path("magicapture-demo"),
        metavar="DIR",
    )


def add_train(parser: argparse.ArgumentParser) -> None:
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
    _add_leave_out(faces, "Train")
    _add_faces(
        faces,
        parser_model=True,
        face_model="A face recognition model, .onnx or TorchScript .pt, for the identity loss.",
        optional=True,
    )
    _add_dino(parser)
    _add_base(parser)
    settings = parser.add_argument_group("recipe")
    _add_recipe(settings)
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
    _add_keep(parser)
    result = parser.add_argument_group("result")
    add = result.add_argument
    add("--out", required=True, metavar="NAME", help="Name of the LoRA's file, without ending.")
    _add_folder(result, "--out-dir")
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
    _add_no_made_with(result)
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


def _add_dino(parser: argparse.ArgumentParser) -> None:
    option(
        parser.add_argument_group("things", "For the recipe things."),
        "--dino",
        Path,
        "A DINO or DINOv2: torch hub's file, or transformers' file or folder.",
        shown="the best one found",
        metavar="PATH",
    )


def _add_plan(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("plan")
    option(
        what,
        "--fit",
        float,
        "Which settings fit in so many GB, the cheapest first.",
        shown="what this device has",
        metavar="GB",
    )
    option(
        what,
        "--measure",
        int,
        "Take N real steps of each phase first, on pictures of noise, so that time is known.",
        shown="none; what was measured before counts",
        metavar="N",
    )
    option(what, "--preview-every", int, "As for train.", default=0, metavar="N")
    _add_json(what)
    _add_faces(
        parser.add_argument_group("faces"),
        face_model="A face recognition model, for the identity loss.",
        optional=True,
    )
    _add_dino(parser)
    _add_base(parser)
    _add_recipe(parser.add_argument_group("recipe"))


def _add_recipe(group: Group) -> None:
    chosen = recipe()
    add = group.add_argument
    _add_named_recipe(group)
    option(
        group,
        "--steps",
        int,
        "Steps in all; the phases keep their proportion.",
        shown=f"the recipe's, {chosen.steps} in {DEFAULT}",
    )
    for config, name, value in (
        (LoraSettings, "rank", chosen.lora.rank),
        (Recipe, "resolution", chosen.resolution or _OWN),
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


def _add_keep(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "checkpoints",
        "With any of these the adapters of several steps are kept and scored, and the best is "
        "saved.",
    )
    for name in KEPT:
        own = "the base model's own" if name == "keep_guidance" else ""
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
    _add_judge(group, "the best found that is not the identity loss's; else that one")


def _add_judge(group: Group, shown: str) -> None:
    """The face recognition model that scores."""
    option(
        group, "--judge-model", str, "The one that scores; another.", shown=shown, metavar="FILE"
    )
    option(
        group,
        "--judge-model-input",
        str,
        "What its pixels are scaled to.",
        default="arcface",
        choices=list(NORMALISATIONS),
    )


def _add_named_recipe(group: Group) -> None:
    names = f"One of {', '.join(RECIPE_NAMES)}, or a .json file."
    option(group, "--recipe", str, names, default=DEFAULT)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    jobs = "A YAML file of jobs, each a mapping: person, style, base, out, and what train takes."
    parser.add_argument("jobs", metavar="JOBS", type=Path, help=jobs)
    where = "A folder that all machines see, or an address that fsspec knows (s3://bucket/run)."
    option(parser, "--out", str, where, default="magicapture-batch", metavar="DIR")
    usual = BatchSettings("")
    option(parser, "--address", str, "Of a Ray cluster.", shown="one on this machine, for as long")
    option(parser, "--gpus", float, "GPUs that a job takes.", shown="1 where there are any")
    option(parser, "--cpus", int, "CPU cores that a job takes.", default=usual.cpus)
    option(parser, "--workers", int, "Jobs at a time.", shown="as many as the cluster takes")
    option(
        parser,
        "--retries",
        int,
        "Tries of a job after the first, where it fails or its worker is lost.",
        default=usual.retries,
    )
    add = parser.add_argument
    add("--fresh", action="store_true", help="Run finished jobs again.")
    add("--no-pictures", action="store_true", help="Draw no picture of each job for the page.")


def _add_sample(parser: argparse.ArgumentParser) -> None:
    picture = parser.add_argument_group("picture")
    add = picture.add_argument
    add("--adapter", required=True, type=Path, metavar="FILE", help="The LoRA that train wrote.")
    prompts = picture.add_mutually_exclusive_group()
    option(
        prompts,
        "--prompt",
        str,
        "A text with the tokens in it, such as <my-person>.",
        shown="a sentence of the training",
    )
    option(
        prompts,
        "--prompt-kind",
        str,
        "A sentence of the training: the person in the style, or one of them alone.",
        default="composed",
        choices=get_args(PromptKind),
    )
    own = dict.fromkeys(("guidance", "width", "height"), _OWN)
    shown = {"edit_strength": "twice the guidance", **own}
    for name in DRAWN_BY:
        setting_option(picture, SamplingSettings, name, shown=shown.get(name, ""))
    option(
        picture,
        "--strength",
        float,
        "Strength of the LoRA; lower it to 0.8 or 0.9 if words of the prompt that contradict the "
        "photos are ignored.",
        default=1.0,
    )
    option(picture, "--seed", int, "Seed of the first picture.", default=0)
    option(picture, "--count", int, "How many pictures, each with the next seed.", default=1)
    _add_folder(picture, "--out")
    _add_no_made_with(picture)
    _add_base(parser)
    refocus = parser.add_argument_group("attention refocusing")
    for name in ("bias", "gradient"):
        setting_option(
            refocus,
            RefocusGuidance,
            name,
            prefix="refocus-",
            shown="0, off",
            default=0.0,
            metavar="STRENGTH",
        )
    option(
        refocus,
        "--refocus-region",
        Path,
        "Where the face belongs, white in a picture.",
        shown="found from the attention",
        metavar="FILE",
    )


def _add_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path, metavar="FILE", help="The LoRA that train wrote.")


def _add_masks(parser: argparse.ArgumentParser) -> None:
    _add_photos(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="Make anew the masks and landmarks that are there."
    )
    option(
        parser,
        "--cut-out",
        Path,
        "For things: an ONNX file of U^2-Net or IS-Net, which the package rembg runs, marks what "
        "stands out in each photo. No face is looked for.",
        shown="none",
        metavar="FILE",
    )
    for name in ("parts", "grow", "feather"):
        setting_option(parser, MaskSettings, name)
    option(parser, "--sheet", Path, "Write a contact sheet (.png).", shown="none", metavar="FILE")
    _add_faces(parser.add_argument_group("faces"), parser_model=True, optional=True)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_photos(parser)
    option(
        parser,
        "--resolution",
        int,
        help_of(Recipe, "resolution"),
        default=recipe().side,
    )
    sheet = "Write a contact sheet (.png) with verdicts."
    option(parser, "--sheet", Path, sheet, shown="none", metavar="FILE")
    _add_json(parser)
    _add_faces(parser.add_argument_group("faces"), parser_model=True, optional=True)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="The person's photos.")
    add("--style", required=True, metavar="DIR", help="Portraits in the style.")
    sheet = "Write a contact sheet (.png); violet is not taught."
    option(parser, "--sheet", Path, sheet, shown="none", metavar="FILE")
    option(parser, "--out", Path, "Write each label here.", shown="none", metavar="DIR")
    _add_named_recipe(parser)
    chosen = recipe()
    for name in SETTINGS:
        value = getattr(chosen.labels, name)
        setting_option(parser, LabelSettings, name, shown=f"the recipe's, {value} in {DEFAULT}")
    shown = f"the recipe's, {chosen.side} where it has none"
    setting_option(parser, Recipe, "resolution", shown=shown)
    faces = parser.add_argument_group("faces")
    _add_leave_out(faces, "Make labels")
    _add_faces(faces, parser_model=True, optional=True)


def _add_identity(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="Photos of the person.")
    add("pictures", metavar="PICTURES", nargs="+", type=Path, help="Pictures, and folders of them.")
    _add_loss_model(parser)
    _add_json(parser)
    _add_faces(parser.add_argument_group("faces"))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    pictures = "Folders of pictures, one for each adapter, beside each other; or pictures."
    add("pictures", metavar="PICTURES", nargs="+", type=Path, help=pictures)
    add("--person", required=True, metavar="DIR", help="Photos of the person.")
    option(parser, "--style", str, "Portraits in the style.", shown="none", metavar="DIR")
    option(
        parser,
        "--prompt",
        str,
        "What the pictures were to show, in plain words; a picture's own is in a .txt beside it.",
        shown="none",
    )
    option(
        parser,
        "--clip",
        Path,
        "A CLIP model: a transformers folder, or one .safetensors file.",
        shown="none",
        metavar="PATH",
    )
    option(
        parser,
        "--aesthetic",
        Path,
        "An aesthetic predictor over that CLIP model, such as LAION's.",
        shown="none",
        metavar="FILE",
    )
    add("--by-skin-tone", action="store_true", help="Read skin tones, and tell them apart.")
    where = Path("magicapture-evaluation")
    option(parser, "--out", Path, "The folder to write into.", default=where, metavar="DIR")
    _add_loss_model(parser)
    _add_device(parser)
    _add_faces(parser.add_argument_group("faces"), parser_model=True, optional=True)


def _add_loss_model(group: Group) -> None:
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


def _add_bench(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is trained and drawn")
    add = what.add_argument
    for flag, help in (
        ("--faces", "A folder of people: in it a folder of photos for each."),
        ("--styles", "A folder of styles: in it a folder of portraits for each, or one's alone."),
    ):
        option(what, flag, Path, help, shown="none; it is needed", metavar="DIR")
    option(
        what,
        "--recipes",
        str,
        "Names of recipes, or .json files, with commas between; the others are compared with the "
        "first.",
        default=f"{DEFAULT},release,dreambooth",
    )
    for name in COUNTS:
        setting_option(what, BenchSettings, name)
    edits = "; ".join(BenchSettings().edits)
    option(what, "--edit", str, "Words to edit with; again for more.", shown=edits, action="append")
    option(what, "--steps", int, "Steps of each recipe, for a trial.", shown="the recipes' own")
    setting_option(what, Recipe, "resolution", shown="the recipes'")
    option(what, "--draw-steps", int, "Denoising steps.", default=SamplingSettings().steps)
    add("--save-memory", action="store_true", help="The same result, slower, in less memory.")
    faces = parser.add_argument_group("faces")
    _add_faces(
        faces,
        parser_model=True,
        face_model="The identity loss's face recognition model.",
        optional=True,
    )
    _add_judge(faces, "the best found that computes something else")
    clip = "A CLIP model, as a transformers folder: scores style again, and whether edits show."
    option(faces, "--clip", Path, clip, shown="none", metavar="DIR")
    _add_base(parser)
    result = parser.add_argument_group("result")
    option(
        result,
        "--title",
        str,
        "What the base model is called in the report.",
        default="",
        shown="no",
    )
    where = Path("magicapture-bench")
    option(result, "--out", Path, "The folder to write into.", default=where, metavar="DIR")
    result.add_argument("--no-pictures", action="store_true", help="A page of figures alone.")
    result.add_argument(
        "--fresh", action="store_true", help="Start over, though a stopped bench could go on."
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    _add_folder_of_models(parser)


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="The recipe to print, as JSON.")


def _add_photos(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="The photos.")
    add("--style", action="store_true", help="Portraits of a style: their people may differ.")


def _add_base(parser: argparse.ArgumentParser) -> None:
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
        shown="none, the base model's own",
        metavar="PATH",
    )
    _add_device(base)
    option(
        base,
        "--precision",
        str,
        "Number format of the base model.",
        shown="bf16 on a GPU, fp32 elsewhere",
        choices=list(DTYPES),
    )


def _add_device(group: Group) -> None:
    option(
        group,
        "--device",
        str,
        "Such as cuda, cuda:1 or cpu.",
        shown="the GPU where there is one",
    )


def _add_faces(
    group: Group,
    *,
    parser_model: bool = False,
    face_model: str = "A face recognition model.",
    optional: bool = False,
) -> None:
    _add_folder_of_models(group)
    or_none = "; 'none' goes without" if optional else ""
    kinds = {"--detector": "A face detector."}
    if parser_model:
        kinds["--parser"] = "A face parser, which outlines a face; without one a mask is an oval."
    for flag, help in kinds.items():
        found = "the best one found" + (or_none if flag == "--parser" else "")
        option(group, flag, str, help, shown=found, metavar="FILE")
    found = f"the best one found{or_none}"
    option(group, "--face-model", str, face_model, shown=found, metavar="FILE")
    option(
        group,
        "--face-model-input",
        str,
        "What the face recognition model's pixels are scaled to.",
        default="arcface",
        choices=list(NORMALISATIONS),
    )


def _add_leave_out(group: Group, what: str) -> None:
    group.add_argument(
        "--leave-out",
        action="store_true",
        help=f"{what} without the photos whose verdict is to leave them out.",
    )


def _add_folder_of_models(group: Group) -> None:
    option(
        group,
        "--models",
        str,
        "Where models are, laid out as ComfyUI's models folder or flat.",
        shown="$MAGICAPTURE_MODELS",
        metavar="DIR",
    )


def _add_folder(group: Group, flag: str) -> None:
    where = "the folder you are in"
    option(group, flag, Path, "Where to write.", default=Path(), shown=where, metavar="DIR")


def _add_no_made_with(group: Group) -> None:
    group.add_argument(
        "--no-made-with",
        action="store_true",
        help="Do not say in the files that MagiCapture made them.",
    )


def _add_json(group: Group) -> None:
    option(group, "--json", Path, "Write the report as JSON.", shown="none", metavar="FILE")
