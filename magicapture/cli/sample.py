"""`magicapture sample`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import get_args

import torch

from .. import sampling
from ..adapters import MAX_STRENGTH, Adapter, load_adapter
from ..backbone import Backbone
from ..data.folder import read_mask
from ..errors import InputError
from ..files import check_writable
from ..images import read_picture
from ..prompts import PromptKind, with_edit
from ..refocusing import PromptRefocuser, RefocusGuidance, foci
from ..sampling import SamplingSettings
from ..tokens import Prompt, TokenVectors, token_names
from .groups import OWN, add_base, add_folder, add_no_made_with
from .images import free_path, save_image
from .model import backbone_from, precision_from
from .options import MAX_SEED, option, require_range, require_text, setting_option, settings_from

logger = logging.getLogger(__name__)

DRAWN_BY = (
    "edit",
    "edit_strength",
    "negative",
    "width",
    "height",
    "steps",
    "guidance",
    "sampler",
)
"""The settings of sampling that are options."""


def sample(arguments: argparse.Namespace) -> None:
    """Draw pictures with a trained adapter."""
    require_range("--count", arguments.count, 1)
    require_range("--seed", arguments.seed, 0, MAX_SEED)
    require_range("--strength", arguments.strength, -MAX_STRENGTH, MAX_STRENGTH)
    require_text("--prompt", arguments.prompt)
    settings = settings_from(SamplingSettings, arguments, DRAWN_BY)
    refocus = settings_from(RefocusGuidance, arguments, ("bias", "gradient"), "refocus-")
    if arguments.refocus_region and not refocus.acts:
        raise InputError(
            "--refocus-region: it acts through --refocus-bias or --refocus-gradient; give one."
        )
    check_writable(arguments.out)  # before minutes are spent
    file: Path = arguments.adapter
    adapter = load_adapter(file, [file.parent / "embeddings", file.parent])
    prompt = _prompt(arguments, adapter)
    _check_tokens(settings.edit, adapter)
    backbone = backbone_from(arguments, precision_from(arguments))
    vectors = adapter.vectors().to(backbone.device)
    with sampling.adapted(backbone, adapter, arguments.strength):
        for index in range(arguments.count):
            seed = arguments.seed + index
            guide = _guide(arguments, refocus, backbone, prompt, adapter, vectors)
            image = sampling.sample(backbone, prompt, vectors, settings, seed=seed, guide=guide)[0]
            path = free_path(arguments.out, file.stem)
            text = with_edit(prompt, settings.edit)
            save_image(image, path, text, seed, made_with=not arguments.no_made_with)
            logger.info("Wrote %s", path)


def _guide(
    arguments: argparse.Namespace,
    settings: RefocusGuidance,
    backbone: Backbone,
    prompt: str,
    adapter: Adapter,
    vectors: TokenVectors,
) -> PromptRefocuser | None:
    """Attention Refocusing as asked for, for one drawing; None where both strengths are 0."""
    if not settings.acts:
        return None
    file = arguments.refocus_region
    region = None if file is None else read_mask(file, read_picture(file))[None]
    prompts = [Prompt(prompt)]
    with torch.no_grad():
        conditioning = backbone.encode_prompts(prompts, vectors)
    rows = foci(backbone, prompts, conditioning, vectors, adapter.concepts)
    return PromptRefocuser(backbone, rows, settings, region)


def _prompt(arguments: argparse.Namespace, adapter: Adapter) -> str:
    """The prompt given, or one of the training's; raises InputError for an unknown token."""
    if arguments.prompt is None:
        return adapter.prompt(arguments.prompt_kind)
    prompt: str = arguments.prompt
    _check_tokens(prompt, adapter)
    for concept in adapter.concepts:
        prompt = concept.marked(prompt)
    return prompt


def _check_tokens(text: str, adapter: Adapter) -> None:
    """Raise InputError for a text with a token that the adapter does not have."""
    unknown = sorted(token_names(text) - {*adapter.names})
    if unknown:
        tokens = ", ".join(f"<{name}>" for name in adapter.names) or "none"
        raise InputError(
            f"The prompt names the token <{unknown[0]}>, which the adapter does not have; its "
            f"tokens are {tokens}."
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sample`."""
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
    own = dict.fromkeys(("guidance", "width", "height"), OWN)
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
    add_folder(picture, "--out")
    add_no_made_with(picture)
    add_base(parser)
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
