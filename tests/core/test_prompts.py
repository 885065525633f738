"""The sentences of training, and how ComfyUI's prompts name the tokens."""

from __future__ import annotations

import string

import pytest

from magicapture.config import PromptTemplates
from magicapture.errors import InputError
from magicapture.prompts import as_embeddings, prompt_for
from magicapture.tokens import Concept

CONCEPTS = (Concept("ada-1", "subject", "woman"), Concept("oil-1", "style"))


def test_each_kind_of_prompt():
    templates = PromptTemplates()
    assert prompt_for(CONCEPTS, templates) == "a photo of <ada-1> woman in the <oil-1> style"
    assert prompt_for(CONCEPTS, templates, "subject", sentence=1) == "a portrait of <ada-1> woman"
    assert prompt_for(CONCEPTS, templates, "style", extra=" red hat ") == (
        "a photo of a woman in the <oil-1> style, red hat"
    )
    last = len(templates.composed)
    assert prompt_for(CONCEPTS, templates, sentence=last) == prompt_for(CONCEPTS, templates)


def test_tokens_as_embeddings():
    text = "<ada-1> by <oil-1>, not <ada-10> nor <b>"
    assert (
        as_embeddings(text, CONCEPTS) == "embedding:ada-1 by embedding:oil-1, not <ada-10> nor <b>"
    )


def test_two_subjects_are_refused():
    with pytest.raises(InputError, match="one subject and one style"):
        prompt_for((CONCEPTS[0], CONCEPTS[0]), PromptTemplates())


def test_every_template_has_the_tokens_of_its_task():
    wanted = {
        "source": {"subject", "noun"},
        "style": {"style", "noun"},
        "composed": {"subject", "style", "noun"},
        "prior": {"noun"},
    }
    for task, fields in wanted.items():
        for template in getattr(PromptTemplates(), task):
            found = {name for _, name, _, _ in string.Formatter().parse(template) if name}
            assert found == fields
