"""`magicapture plan`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..backbones import DiffusersBackbone
from ..config import Recipe
from ..dino import Dino
from ..faces.embed import FaceEmbedder
from ..families import FAMILIES
from ..losses import needs
from ..planning import (
    GB,
    Choice,
    Plan,
    Records,
    choices,
    duration,
    fits,
    gigabytes,
    noise_job,
    planned,
    quantised,
    tried,
)
from ..training import TrainingJob
from .faces import judges_from
from .groups import add_base, add_dino, add_faces, add_json, add_recipe
from .model import DTYPES, backbone_from
from .options import option, require_range
from .outputs import check_json, write_json
from .recipe import recipe_from

logger = logging.getLogger(__name__)

_COMMAND = "magicapture plan"
_DECODER = "a TAESD as decoder"

Row = tuple[Choice, Plan]


def plan(arguments: argparse.Namespace) -> None:
    """Tell how much memory a training needs and how long it takes, setting by setting."""
    check_json(arguments.json, _COMMAND)
    for flag, least in (("fit", 0), ("measure", 2), ("preview-every", 0)):
        if (value := getattr(arguments, flag.replace("-", "_"))) is not None:
            require_range(f"--{flag}", value, least)
    asked, records = recipe_from(arguments), Records()
    judges = judges_from(arguments, asked)
    backbone = backbone_from(arguments, asked.precision)
    family = FAMILIES[backbone.family]
    job = noise_job(asked, asked.resolution or family.resolution).fitted(backbone.family)
    if arguments.measure:
        embedder, dino = judges
        now = planned(job, backbone, embedder, dino=dino, records=records)
        tried(job, backbone, embedder, now, arguments.measure, records, dino)
    rows: list[Row] = []
    for choice in _choices(job.recipe, family.cell, backbone):
        logger.info("Looking at: %s", choice.title)
        every = arguments.preview_every
        rows.append((choice, _planned(job, choice, backbone, judges, records, every)))
    rows.append(_in_8_bits(rows[0], backbone))
    space = None if arguments.fit is None else arguments.fit * GB
    title = f"{family.title}, {job.recipe.side} px, {asked.name}, {asked.steps} steps"
    lines = [title, rows[0][1].line(), "", *_table(rows, space), "", _first(rows, space)]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json:
        write_json(arguments.json, {"title": title, "rows": _data(rows, space)}, _COMMAND)
        logger.info("Wrote %s", arguments.json)


def _choices(recipe: Recipe, cell: int, backbone: DiffusersBackbone) -> Iterator[Choice]:
    """The recipe and those in less memory, then decoder and precision."""
    yield from choices(recipe, cell)
    small = FAMILIES[backbone.family].taesd and not backbone.has_fast_decoder
    decodes = "face model" in needs(recipe) or "dino" in needs(recipe)
    if decodes and small:
        yield Choice(_DECODER, "--taesd FILE", recipe)
    for precision in ("bf16", "fp32"):
        if DTYPES[precision] != backbone.dtype:
            other = replace(recipe, precision=precision)
            yield Choice(precision, f"--precision {precision}", other)


def _planned(
    job: TrainingJob,
    choice: Choice,
    backbone: DiffusersBackbone,
    judges: tuple[FaceEmbedder | None, Dino | None],
    records: Records,
    preview_every: int,
) -> Plan:
    embedder, dino = judges
    job = replace(job, recipe=choice.recipe)
    dtype = None if (asked := DTYPES[choice.recipe.precision]) == backbone.dtype else asked
    with _small_decoder(backbone, choice.title == _DECODER):
        return planned(
            job,
            backbone,
            embedder,
            dino=dino,
            records=records,
            dtype=dtype,
            preview_every=preview_every,
        )


@contextmanager
def _small_decoder(backbone: DiffusersBackbone, wanted: bool) -> Iterator[None]:
    """A TAESD without its weights for a while, where it is wanted."""
    from diffusers import AutoencoderTiny

    before = backbone.decoder
    try:
        if wanted:
            tiny: Any = AutoencoderTiny(latent_channels=backbone.latent_channels)
            backbone.decoder = tiny.to(backbone.device, backbone.dtype).requires_grad_(False)
        yield
    finally:
        backbone.decoder = before


def _in_8_bits(row: Row, backbone: DiffusersBackbone) -> Row:
    """The row with the network in fp8, which ComfyUI trains through and the command line does not.

    By arithmetic alone.
    """
    choice, plan = row
    footprint = quantised(plan.footprint, backbone.unet)
    record = replace(plan.record, footprint=footprint, seconds={}, slack=None)
    title = Choice("fp8 base model", "in ComfyUI: an fp8 checkpoint", choice.recipe)
    return title, replace(plan, record=record, speed=None)


def _table(rows: Sequence[Row], space: float | None) -> Iterator[str]:
    asked = rows[0][1]
    yield f"{'setting':<22} {'memory':>9} {'FLOPs':>7} {'time':>12}  fits  option"
    for choice, plan in rows:
        ratio = plan.footprint.flops / max(1, asked.footprint.flops)
        time = "?" if plan.seconds is None else duration(plan.seconds)
        yield (
            f"{choice.title:<22} {gigabytes(plan.needs):>9} {ratio:>6.2f}x {time:>12}  "
            f"{'yes ' if fits(plan, space) else 'no  '}  {choice.options}"
        ).rstrip()


def _first(rows: Sequence[Row], space: float | None) -> str:
    """The cheapest that fits, in words."""
    had = "here" if space is None else f"in {gigabytes(space)}"
    for choice, plan in rows:
        if fits(plan, space):
            option = f" ({choice.options})" if choice.options else ""
            return f"The first that fits {had}: {choice.title}{option}."
    return f"None of these fits {had}; take a smaller base model or a quantised one."


def _data(rows: Sequence[Row], space: float | None) -> list[dict[str, Any]]:
    return [
        {
            "setting": choice.title,
            "options": choice.options,
            "bytes": plan.needs,
            "seconds": plan.seconds,
            "measured": plan.record.slack is not None,
            "fits": fits(plan, space),
            **plan.footprint.to_dict(),
        }
        for choice, plan in rows
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
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
    add_json(what)
    add_faces(
        parser.add_argument_group("faces"),
        face_model="A face recognition model, for the identity loss.",
        optional=True,
    )
    add_dino(parser)
    add_base(parser)
    add_recipe(parser.add_argument_group("recipe"))
