"""The named recipes as they train on dolls, in words that the paperdoll model knows."""

from __future__ import annotations

from dataclasses import replace

from ..config import PromptTemplates, Recipe
from ..recipes import DEFAULT, miniature, recipe

_OPENINGS = ("a photo of", "a portrait of", "a picture of")

PROMPTS = PromptTemplates(
    source=tuple(f"{opening} {{subject}} {{noun}}" for opening in _OPENINGS),
    style=tuple(f"{opening} a {{noun}} in the {{style}} style" for opening in _OPENINGS),
    composed=tuple(
        f"{opening} {{subject}} {{noun}} in the {{style}} style" for opening in _OPENINGS
    ),
)
"""Sentences of the usual form, without words that the captions do not have."""


def doll_recipe(name: str = DEFAULT) -> Recipe:
    """The recipe of this name at paperdoll's size (`recipes.miniature`), in paperdoll's words.

    Raises InputError for a name there is not.
    """
    return replace(miniature(recipe(name)), prompts=PROMPTS)
