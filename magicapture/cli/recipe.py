"""`magicapture recipes`, and the recipe that a command line asks for."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from ..config import Recipe, from_dict, to_dict
from ..errors import InputError, StorageError
from ..recipes import RECIPE_NAMES, recipe, with_steps
from .model import precision_from


def recipes(arguments: argparse.Namespace) -> None:
    """Print the names of the recipes, or one of them as JSON."""
    if arguments.name is None:
        sys.stdout.write("\n".join(RECIPE_NAMES) + "\n")
    else:
        sys.stdout.write(json.dumps(to_dict(recipe(arguments.name)), indent=2) + "\n")


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The recipe by name or from a file, with what the command line changes.

    Raises InputError or StorageError where there is none or a value is out of range.
    """
    chosen = _named_or_read(arguments.recipe)
    if arguments.steps is not None:
        chosen = with_steps(chosen, arguments.steps)
    if arguments.rank is not None:
        chosen = replace(chosen, lora=replace(chosen.lora, rank=arguments.rank))
    if arguments.resolution is not None:
        chosen = replace(chosen, resolution=arguments.resolution)
    if arguments.save_memory:
        chosen = replace(chosen, batching="in_turn", checkpointing=True)
    if arguments.precision or chosen.precision == "model":
        chosen = replace(chosen, precision=precision_from(arguments))
    return chosen


def _named_or_read(name: str) -> Recipe:
    if not name.endswith(".json"):
        return recipe(name)
    try:
        data = json.loads(Path(name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"The recipe {name} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{name} holds no recipe; `magicapture recipes NAME` prints one.")
    return from_dict(Recipe, data)
