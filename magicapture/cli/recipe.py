"""`magicapture recipes`, and the recipe that a command line asks for."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from ..config import Recipe
from ..recipes import (
    RECIPE_NAMES,
    changed,
    commented,
    parse_changes,
    read_recipe,
    recipe,
    with_steps,
    without_masks,
)
from .model import precision_from
from .options import naming


def recipes(arguments: argparse.Namespace) -> None:
    """Print the names of the recipes, or one of them as JSON."""
    if arguments.name is None:
        sys.stdout.write("\n".join(RECIPE_NAMES) + "\n")
    else:
        sys.stdout.write(json.dumps(commented(arguments.name), indent=2) + "\n")


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The recipe by name or from a file, with what the command line changes.

    Raises InputError or StorageError where there is none or a value is out of range.
    """
    chosen = named_or_read(arguments.recipe)
    if arguments.steps is not None:
        with naming("--steps"):
            chosen = with_steps(chosen, arguments.steps)
    for name, path in (("rank", "lora.rank"), ("resolution", "resolution")):
        if (value := getattr(arguments, name)) is not None:
            with naming(f"--{name}"):
                chosen = changed(chosen, {path: value})
    if arguments.save_memory:
        chosen = replace(chosen, batching="in_turn", checkpointing=True)
    if arguments.without_masks:
        chosen = without_masks(chosen)
    with naming("--set"):
        chosen = changed(chosen, parse_changes(arguments.set))
    if arguments.precision or chosen.precision == "model":
        chosen = replace(chosen, precision=precision_from(arguments))
    return chosen


def named_or_read(name: str) -> Recipe:
    """A recipe by name, or from a .json file; raises InputError or StorageError."""
    with naming("--recipe"):
        return read_recipe(Path(name)) if name.lower().endswith(".json") else recipe(name)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `recipes`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="The recipe to print, as JSON.")
