"""The named recipes as they train on dolls, in words that the paperdoll model knows."""

from __future__ import annotations

from dataclasses import replace

from ..config import LoraSettings, PromptTemplates, Rates, Recipe
from ..recipes import DEFAULT, miniature, recipe, with_weights

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


STEPS = (150, 1050)
"""Steps of the default's phases on dolls: the demo then ends within three minutes on two cores."""


def doll_recipe(name: str = DEFAULT) -> Recipe:
    """The recipe of this name at paperdoll's size (`recipes.miniature`), in paperdoll's words.

    Noise levels are weighted as in the dolls' pretraining, as those of Stable Diffusion are in its
    own: unweighted, composition is learned last. No picture is mirrored: in drawings as regular as
    dolls it is a contradiction, to any method. Raises InputError for a name there is not.
    """
    full = miniature(recipe(name))
    words = replace(full.words, edits=EDITS)
    small = replace(full, prompts=PROMPTS, words=words, weighting="v", flip=False)
    return _tuned(small) if name == DEFAULT else small


def _tuned(recipe: Recipe) -> Recipe:
    """The default with the rates, weights and forms that development pairs asked for.

    A miniature's rates leave the style unlearned. A LoRA on cross-attention alone learns little of
    a doll in however many steps. The pseudo-label shows the person's face, since nothing else
    keeps what the identity loss makes a face, and counts ten times: it alone shows what is asked
    for. The identity loss is blind to colour, or it paints blue eyes into a grey picture, and
    weaker beside it: dolls' noise error is about 0.04, a fifth of Stable Diffusion's.
    """
    first, last = recipe.phases
    phases = (
        replace(first, steps=STEPS[0], rates=Rates(tokens=1e-3)),
        replace(last, steps=STEPS[1], rates=Rates(tokens=1e-3, unet=2e-3)),
    )
    recipe = replace(
        recipe,
        phases=phases,
        lora=LoraSettings(targets="all_linear"),
        identity=replace(recipe.identity, colour_blind=True),
        pseudo_label="face_laid_in",
    )
    return with_weights(recipe, composed=10, identity=0.5)
