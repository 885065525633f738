"""The named recipes as they train on dolls, in words that the paperdoll model knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..config import PromptTemplates, Recipe
from ..recipes import DEFAULT, miniature, recipe, with_rates
from .model import ModelName

_OPENINGS = ("a photo of", "a portrait of", "a picture of")

PROMPTS = PromptTemplates(
    source=tuple(f"{opening} {{subject}} {{noun}}" for opening in _OPENINGS),
    style=tuple(f"{opening} a {{noun}} in the {{style}} style" for opening in _OPENINGS),
    composed=tuple(
        f"{opening} {{subject}} {{noun}} in the {{style}} style" for opening in _OPENINGS
    ),
)
"""Sentences of the usual form, without words that the captions do not have."""

EDITS = (
    "with stubble",
    "with moustache",
    "with beard",
    "with freckles",
    "with mole",
    "with scar",
    "wearing a green hoodie",
    "wearing a yellow suit",
    "wearing a white dress",
    "wearing a beanie",
    "curly black hair",
    "long pink hair",
    "bald",
    "on a checked green and yellow background",
    "on a gradient white background",
    "on a sunburst orange and purple background",
    "on a checked grey and teal background",
)
"""Words to be kept in their meaning; none is asked for by `edits.edits`."""

RATES: Mapping[str, float] = {
    DEFAULT: 4.0,
    "textual-inversion": 0.5,
    "dreambooth": 8.0,
    "custom-diffusion": 8.0,
    "paper": 8.0,
    "release": 2.0,
}
"""Factor on a miniature's learning rates: each recipe's best of a grid, on development pairs; the
default's of 2 and 4 alone."""


def doll_recipe(
    name: str = DEFAULT, rate: float | None = None, model: ModelName = "unet"
) -> Recipe:
    """The recipe of this name at paperdoll's size (`recipes.miniature`), in paperdoll's words.

    Three things are the dolls' own, for every recipe alike. rate: the factor on all learning
    rates, that of RATES if None. Noise levels are weighted as in the dolls' pretraining, as those
    of Stable Diffusion are in its own: unweighted, a UNet learns composition last. The transformer
    was trained by the draw of its levels alone. No picture is
    mirrored: in drawings as regular as dolls it is a contradiction, to any method. Raises
    InputError for a name there is not.
    """
    small = miniature(recipe(name))
    return replace(
        with_rates(small, RATES.get(name, 1.0) if rate is None else rate),
        prompts=PROMPTS,
        words=replace(small.words, edits=EDITS),
        weighting="v" if model == "unet" else "none",
        flip=False,
    )
