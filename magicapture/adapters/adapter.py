"""What a training run leaves behind: LoRA weights, token vectors, and how they came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from ..config import PromptTemplates, Recipe
from ..errors import InputError
from ..families import FAMILIES
from ..lora import LoraWeights
from ..parts import Parts, merge
from ..prompts import PromptKind, prompt_for
from ..tokens import Concept, TokenVectors

ENCODERS: Mapping[str, tuple[str, ...]] = {name: of.keys for name, of in FAMILIES.items()}
"""The text encoders of each family, by the key their embeddings have in files."""

FAMILY_NAMES: Mapping[str, str] = {name: of.title for name, of in FAMILIES.items()}
"""What users call each family."""

MAX_STRENGTH = 10.0
"""Most that a LoRA is applied at, either way; beyond it pictures are noise."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A learned person and style, for any base model of its family.

    lora: weights by "<network>.<name>" or "<encoder>.<name>", where <network> is the family's
    ("unet", "transformer"), <encoder> is one of `ENCODERS[family]` and <name> is the module's name
    in diffusers ("text_model." included).
    tokens: for each token and encoder the vectors (n,width); a concept without vectors has none.
    family: one of `ENCODERS`. recipe: None where the file did not tell.
    info: facts about the run as plain text ("steps", "seed", "face_model": the identity loss's),
    kept in files.
    """

    lora: Mapping[str, LoraWeights]
    tokens: Mapping[str, Mapping[str, Tensor]]
    family: str
    recipe: Recipe | None = None
    concepts: tuple[Concept, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in ENCODERS:
            raise InputError(
                f"The adapter's family is {self.family!r}; expected one of {', '.join(ENCODERS)}."
            )
        known = (FAMILIES[self.family].network, *ENCODERS[self.family])
        strange = [key for key in self.lora if key.partition(".")[0] not in known]
        if strange:
            raise InputError(
                f"The adapter has LoRA weights for {strange[0]!r}; {self.family} has the parts "
                f"{', '.join(known)}."
            )
        for name, vectors in self.tokens.items():
            if set(vectors) != set(ENCODERS[self.family]):
                raise InputError(
                    f"The token {name!r} has vectors for {', '.join(vectors) or 'no encoder'}; "
                    f"{FAMILY_NAMES[self.family]} needs {' and '.join(ENCODERS[self.family])}. "
                    "Take an embedding that was trained for it."
                )
            if len({len(values) for values in vectors.values()}) > 1:
                counts = " and ".join(f"{len(of)} for {key}" for key, of in vectors.items())
                raise InputError(
                    f"The token {name!r} has {counts}; expected as many vectors for each. Save or "
                    "download its embedding again."
                )

    def prompt(self, kind: PromptKind = "composed", *, sentence: int = 0, extra: str = "") -> str:
        """A sentence of the adapter's training, or one of ours where its recipe is not known.

        Arguments and errors as for `prompts.prompt_for`.
        """
        templates = self.recipe.prompts if self.recipe else PromptTemplates()
        return prompt_for(self.concepts, templates, kind, sentence=sentence, extra=extra)

    @property
    def stock_names(self) -> tuple[str, ...]:
        """The same as prompts of any other program write them (`Concept.stock`)."""
        known = {concept.name: concept.stock for concept in self.concepts}
        return tuple(known.get(name, f"embedding:{name}") for name in self.names)

    def part(self, part: str) -> dict[str, LoraWeights]:
        """The LoRA of the network or of one text encoder, by diffusers' module names."""
        start = f"{part}."
        return {
            key.removeprefix(start): weights
            for key, weights in self.lora.items()
            if key.startswith(start)
        }

    def state_for(self, part: str, module: nn.Module, parts: Parts) -> dict[str, LoraWeights]:
        """The LoRA of one part by a model's own module names, ready for `lora.applied`.

        module: the model. parts: its layers', as `Backbone.parts_of` gives; a fused layer's are
        merged. Raises InputError when the model lacks a layer, or has one of another size.
        """
        weights = self.part(part)
        own = {of.name: name for name, layer in parts.items() for of in layer}
        missing = sorted(weights.keys() - own.keys())
        if missing:
            raise InputError(
                f"The adapter was made for {FAMILY_NAMES[self.family]}, and this base model's "
                f"{part} has no layer {missing[0]} ({len(missing)} are missing); use a base model "
                "of its family."
            )
        state = {}
        for name in dict.fromkeys(own[of] for of in weights):
            matrix = cast("Tensor", module.get_submodule(name).weight)
            state[name] = merge(weights, parts[name], len(matrix))
        return state

    def check_family(self, family: str) -> None:
        """Raise InputError for a base model of another family."""
        if family != self.family:
            raise InputError(
                f"The adapter is for {FAMILY_NAMES[self.family]} and the base model is "
                f"{FAMILY_NAMES.get(family, family)}; use a base model of the adapter's family."
            )

    def vectors(self) -> TokenVectors:
        """The token vectors as prompts are encoded with, and the phrases of tokens without."""
        return TokenVectors(self.tokens, {of.name: of.spelled for of in self.concepts})

    @property
    def names(self) -> tuple[str, ...]:
        """The tokens that prompts may hold, those without vectors among them."""
        return tuple(dict.fromkeys([*self.tokens, *(of.name for of in self.concepts)]))


def check_strength(strength: float) -> None:
    """Raise InputError for a strength that is no number from -MAX_STRENGTH to MAX_STRENGTH."""
    if not abs(strength) <= MAX_STRENGTH:  # NaN included
        raise InputError(
            f"The LoRA's strength is {strength}; expected a number from {-MAX_STRENGTH:g} to "
            f"{MAX_STRENGTH:g}, 1 as trained."
        )
