"""What may be asked for on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ..config import LoraSettings, Recipe, help_of
from ..demo import FAST_STEPS, DemoSettings
from ..faces.embed import NORMALISATIONS
from ..prompts import PromptKind
from ..recipes import DEFAULT, RECIPE_NAMES
from ..refocusing import RefocusGuidance
from ..sampling import SamplerName, SamplingSettings
from .demo import demo
from .doctor import doctor
from .identity import identity
from .model import DTYPES
from .recipe import recipes
from .sample import sample
from .train import train


def parser() -> argparse.ArgumentParser:
    """The parser; what it returns holds the command to run as `run`."""
    root = argparse.ArgumentParser(
        prog="magicapture",
        description="A person's face in a portrait's style, learned from a few photos of each.",
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help=demo.__doc__))
    _add_train(commands.add_parser("train", help=train.__doc__))
    _add_sample(commands.add_parser("sample", help=sample.__doc__))
    _add_doctor(commands.add_parser("doctor", help=doctor.__doc__))
    _add_identity(commands.add_parser("identity", help=identity.__doc__))
    one = commands.add_parser("recipes", help=recipes.__doc__)
    one.add_argument("name", nargs="?", metavar="NAME", help="The recipe to print.")
    one.set_defaults(run=recipes)
    for command in commands.choices.values():
        command.add_argument("--verbose", action="store_true", help="Show where an error arose.")
    return root


def _add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for name in ("identity", "style", "seed"):
        text = f"{help_of(DemoSettings, name)} {getattr(DemoSettings(), name)} if not given."
        add(f"--{name}", type=int, help=text)
    add("--fast", action="store_true", help=f"{FAST_STEPS} steps: a minute, and a rougher result.")
    add("--out", type=Path, default=Path("magicapture-demo"), metavar="DIR", help="Where to write.")
    parser.set_defaults(run=demo)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--base", required=True, help="A Stable Diffusion 1.x or 2.x file, or diffusers folder.")
    add("--taesd", help="A small decoder (TAESD): a file or folder.")
    add("--device", help="Such as cuda, cuda:1 or cpu; the GPU where there is one.")
    add("--precision", choices=list(DTYPES), help="bf16 on a GPU and fp32 elsewhere, if not given.")
    add("--seed", type=int, default=0)


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("--source", required=True, help="The folder of the person's photos.")
    add("--style", required=True, help="The folder of portraits in the style.")
    add("--out", required=True, metavar="NAME", help="Name of the LoRA's file, without ending.")
    add("--out-dir", type=Path, default=Path(), metavar="DIR", help="Where to write it.")
    recipe_help = f"One of {', '.join(RECIPE_NAMES)}, or a .json file; {DEFAULT} if not given."
    add("--recipe", default=DEFAULT, help=recipe_help)
    add("--subject-name", default="my-person", metavar="NAME", help="The person's token.")
    add("--style-name", default="my-style", metavar="NAME", help="The style's token.")
    add("--class-word", default="person", metavar="WORD", help="Such as woman, man, dog.")
    add("--vectors", type=int, default=1, help="How many vectors each token has.")
    add("--steps", type=int, help="Steps in all; the phases keep their proportion.")
    add("--rank", type=int, help=help_of(LoraSettings, "rank"))
    add("--resolution", type=int, help=help_of(Recipe, "resolution"))
    add("--save-memory", action="store_true", help="The same result, slower, in less memory.")
    add("--face-model", metavar="FILE", help="A face recognition model: .onnx, or TorchScript .pt.")
    add(
        "--face-model-input",
        choices=list(NORMALISATIONS),
        default="arcface",
        help="What the face recognition model's pixels are scaled to.",
    )
    add(
        "--preview-every",
        type=int,
        default=0,
        metavar="N",
        help="Draw a picture every N steps and at the end.",
    )
    add("--fresh", action="store_true", help="Start over, though a stopped run could go on.")
    parser.set_defaults(run=train)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="The photos.")
    add("--style", action="store_true", help="Portraits of a style: their people may differ.")
    add("--resolution", type=int, default=512, help=help_of(Recipe, "resolution"))
    add("--sheet", type=Path, metavar="FILE", help="Write a contact sheet (.png) with verdicts.")
    add("--json", type=Path, metavar="FILE", help="Write the report as JSON.")
    _add_faces(parser)
    add("--parser", metavar="FILE", help="A face parser; the best one found, if not given.")
    parser.set_defaults(run=doctor)


def _add_identity(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="Photos of the person.")
    add("pictures", metavar="PICTURES", nargs="+", type=Path, help="Pictures, and folders of them.")
    loss_help = (
        "The face recognition model of the training; another one is taken where one is found."
    )
    add("--loss-face-model", metavar="FILE", help=loss_help)
    adapter_help = (
        "The LoRA that train wrote, which tells its training's face recognition model by name."
    )
    add("--adapter", type=Path, metavar="FILE", help=adapter_help)
    add("--json", type=Path, metavar="FILE", help="Write the report as JSON.")
    _add_faces(parser)
    parser.set_defaults(run=identity)


def _add_faces(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", metavar="DIR", help="Where models are; or set MAGICAPTURE_MODELS.")
    add("--detector", metavar="FILE", help="A face detector; the best one found, if not given.")
    add(
        "--face-model",
        metavar="FILE",
        help="A face recognition model; the best found, if not given.",
    )
    add(
        "--face-model-input",
        choices=list(NORMALISATIONS),
        default="arcface",
        help="What the face recognition model's pixels are scaled to.",
    )


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("--adapter", required=True, type=Path, metavar="FILE", help="The LoRA that train wrote.")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="A text with the tokens in it, such as <my-person>.")
    prompt.add_argument(
        "--prompt-kind",
        choices=get_args(PromptKind),
        default="composed",
        help="A sentence of the training: the person in the style, or one of them alone.",
    )
    for name, kind in (("steps", int), ("guidance", float), ("width", int), ("height", int)):
        add(f"--{name}", type=kind, help=help_of(SamplingSettings, name))
    add("--negative", help=help_of(SamplingSettings, "negative"))
    sampler_help = help_of(SamplingSettings, "sampler")
    add("--sampler", choices=get_args(SamplerName), help=sampler_help)
    add(
        "--strength",
        type=float,
        default=1.0,
        help="Strength of the LoRA; lower it to 0.8-0.9 if prompt words that contradict the photos "
        "are ignored.",
    )
    for name in ("bias", "gradient"):
        text = f"Refocusing: {help_of(RefocusGuidance, name)} 0 if not given."
        add(f"--refocus-{name}", type=float, default=0.0, metavar="STRENGTH", help=text)
    region_help = "Where the face belongs, white in a picture; found from the attention without it."
    add("--refocus-region", type=Path, metavar="FILE", help=region_help)
    add("--count", type=int, default=1, help="How many pictures, each with the next seed.")
    add("--out", type=Path, default=Path(), metavar="DIR", help="Where to write them.")
    parser.set_defaults(run=sample)
