"""`magicapture labels`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..config import LabelSettings, Recipe, Role
from ..data import Learnable, ReferenceSet, load_folder
from ..files import check_writable
from ..labels import label_sheet, of_recipe, report
from ..recipes import DEFAULT, changed, recipe
from ..tokens import Concept
from .faces import embedder_from, faces_found
from .groups import add_faces, add_leave_out, add_named_recipe
from .images import free_path, save_image
from .options import naming, option, require_text, setting_option
from .outputs import check_sheet
from .recipe import named_or_read

logger = logging.getLogger(__name__)

SETTINGS = ("photos", "nearness", "seam")
"""The settings of labels that have an option."""

_SHEET = "contact sheet of labels"


def labels(arguments: argparse.Namespace) -> None:
    """Show what the person in the style will be taught by, before training."""
    require_text("--source", arguments.source)
    require_text("--style", arguments.style)
    for folder in (arguments.source, arguments.style):
        check_sheet(arguments.sheet, Path(folder), _SHEET)
    if arguments.out:
        check_writable(arguments.out)
    recipe = _recipe_from(arguments)
    source, portraits = _photos(arguments, recipe)
    made = of_recipe(portraits, source, recipe)
    for line in report(made).splitlines():
        logger.info("%s", line)
    if arguments.sheet:
        save_image(label_sheet(made), arguments.sheet, _SHEET)
        logger.info("Wrote %s", arguments.sheet)
    if arguments.out:
        for label in made.references:
            save_image(label.image, free_path(arguments.out, "label"), _SHEET)
        logger.info("Wrote %d labels into %s", len(made.labels), arguments.out)


def _recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The recipe, with the settings of labels that the command line has."""
    chosen = named_or_read(arguments.recipe)
    paths = {name: f"labels.{name}" for name in SETTINGS} | {"resolution": "resolution"}
    for name, path in paths.items():
        if (value := getattr(arguments, name)) is not None:
            with naming(f"--{name}"):
                chosen = changed(chosen, {path: value})
    return chosen


def _photos(arguments: argparse.Namespace, recipe: Recipe) -> tuple[ReferenceSet, ReferenceSet]:
    """The person's photos and the style's portraits, their faces known."""

    def learnable(role: Role, folder: str) -> Learnable:
        return Learnable(Concept(role, role), load_folder(folder))

    subject, style = faces_found(
        learnable("subject", arguments.source),
        learnable("style", arguments.style),
        arguments,
        recipe,
        embedder_from(arguments),
    )
    return subject.photos, style.photos


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `labels`."""
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="The person's photos.")
    add("--style", required=True, metavar="DIR", help="Portraits in the style.")
    sheet = "Write a contact sheet (.png); violet is not taught."
    option(parser, "--sheet", Path, sheet, shown="none", metavar="FILE")
    option(parser, "--out", Path, "Write each label here.", shown="none", metavar="DIR")
    add_named_recipe(parser)
    chosen = recipe()
    for name in SETTINGS:
        value = getattr(chosen.labels, name)
        setting_option(parser, LabelSettings, name, shown=f"the recipe's, {value} in {DEFAULT}")
    shown = f"the recipe's, {chosen.side} where it has none"
    setting_option(parser, Recipe, "resolution", shown=shown)
    faces = parser.add_argument_group("faces")
    add_leave_out(faces, "Make labels")
    add_faces(faces, parser_model=True, optional=True)
