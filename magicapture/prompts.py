"""The sentences of training, filled in; the same ones serve to ask for pictures."""

from __future__ import annotations

import re
from typing import Literal

from . import sentences
from .config import PromptTemplates, Recipe, Role, Task
from .errors import InputError
from .tokens import Concept

PromptKind = Literal["composed", "subject", "style"]

_TASKS: dict[str, Task] = {"composed": "composed", "subject": "source", "style": "style"}


def fill(template: str, subject: Concept, style: Concept) -> str:
    """Put the tokens and the class word into a template's {subject}, {style} and {noun}."""
    values = {"subject": subject.token, "style": style.token, "noun": subject.class_word}
    return sentences.fill(template, **values)


def class_prompt(recipe: Recipe, subject: Concept, index: int) -> str:
    """The sentence that the class image of this index is made from, and trained with."""
    templates = recipe.prompts.prior
    return sentences.fill(templates[index % len(templates)], noun=subject.class_word)


def prompt_for(
    concepts: tuple[Concept, ...],
    templates: PromptTemplates,
    kind: PromptKind = "composed",
    *,
    sentence: int = 0,
    extra: str = "",
) -> str:
    """A sentence the tokens were trained with, such as "a photo of <ada> woman in the <oil> style".

    sentence chooses among the templates, round and round; extra is put behind a comma.
    Raises InputError when the concepts are not one subject and one style.
    """
    by_role: dict[Role, Concept] = {concept.role: concept for concept in concepts}
    if set(by_role) != {"subject", "style"}:
        raise InputError(
            "A prompt needs one subject and one style; there are "
            f"{', '.join(f'{c.name} ({c.role})' for c in concepts) or 'none'}."
        )
    of_kind = getattr(templates, _TASKS[kind])
    text = fill(of_kind[sentence % len(of_kind)], by_role["subject"], by_role["style"])
    return with_edit(text, extra)


def with_edit(text: str, words: str) -> str:
    """A prompt with further words behind one comma; as it is where there are none."""
    more = words.strip(", \n")
    return ", ".join(part for part in (text.rstrip(", \n"), more) if part) if more else text


def as_embeddings(text: str, concepts: tuple[Concept, ...]) -> str:
    """Write each token as ComfyUI's prompts do: embedding:ada for <ada>, or its phrase."""
    stock = {concept.name: concept.stock for concept in concepts}
    names = "|".join(map(re.escape, stock))
    return re.sub(f"<({names})>", lambda match: stock[match[1]], text) if names else text
