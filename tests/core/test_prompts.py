"""The sentences of training, and how ComfyUI's prompts name the tokens."""

from __future__ import annotations

import string

import pytest

from magicapture import sentences
from magicapture.config import PromptTemplates
from magicapture.errors import InputError
from magicapture.prompts import as_embeddings, fill, prompt_for, with_edit
from magicapture.tokens import LONGEST_PROMPT, Concept, Prompt, layout

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


@pytest.mark.parametrize("text", ["a photo", "a photo,", "a photo, \n"])
@pytest.mark.parametrize("words", ["red hat", ", red hat, "])
def test_further_words_stand_behind_one_comma(text, words):
    assert with_edit(text, words) == "a photo, red hat"
    assert with_edit(text, " , ") == with_edit(text, "") == text
    assert with_edit("", words) == "red hat"


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


def test_a_value_in_braces_stays_as_it_is():
    filled = sentences.fill("{subject} {noun}", subject="<ada-1>", noun="{style} {noun} {x.y}")
    assert filled == "<ada-1> {style} {noun} {x.y}"
    # What a recipe's check refuses is left as text, not evaluated.
    odd = "{subject:>9}{subject.token}{"
    assert fill(odd, *CONCEPTS) == odd


def test_a_prompt_of_megabytes_is_refused_before_it_is_read():
    with pytest.raises(InputError, match="has 10000000 characters; expected at most 5000") as error:
        Prompt("word " * 2_000_000)
    assert len(str(error.value)) < 300


def test_a_token_behind_the_end_is_told_in_a_line():
    prompt = Prompt("word " * (LONGEST_PROMPT // 5 - 4) + "<ada-1>")
    with pytest.raises(InputError, match="one of the learned ones comes after") as error:
        layout(prompt, {"ada-1": 1}, str.split, before=(0,), after=(1,), pad=1, length=77)
    assert len(str(error.value)) < 500
