"""Recipes: the named ones as commented data files, those of the user, changes to them, their check.

A recipe file is a JSON object of `Recipe`'s fields, at any depth; what is missing takes its
default, and a "comment" may stand anywhere. Every file in this folder is a named recipe.
"""

from .changes import (
    changed,
    fitted,
    miniature,
    parse_changes,
    spelled,
    with_rate,
    with_rates,
    with_steps,
    with_weights,
    without_masks,
)
from .checks import check
from .named import DEFAULT, RECIPE_NAMES, comment_of, commented, read_recipe, recipe

__all__ = [
    "DEFAULT",
    "RECIPE_NAMES",
    "changed",
    "check",
    "comment_of",
    "commented",
    "fitted",
    "miniature",
    "parse_changes",
    "read_recipe",
    "recipe",
    "spelled",
    "with_rate",
    "with_rates",
    "with_steps",
    "with_weights",
    "without_masks",
]
