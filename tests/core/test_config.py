"""Settings: types, ranges, help, and the way through JSON; every error by its path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magicapture import config
from magicapture.config import (
    IdentitySettings,
    LoraSettings,
    Phase,
    PriorSettings,
    PromptTemplates,
    Rates,
    Recipe,
    RefocusSettings,
    from_dict,
    help_of,
    to_dict,
)
from magicapture.errors import InputError
from magicapture.older import current
from magicapture.recipes import DEFAULT, RECIPE_NAMES, recipe
from magicapture.sampling import SamplingSettings
from magicapture.settings import Checked, from_json, object_of, setting

REFUSED = {
    "a number in quotes": (
        {"lora": {"rank": "16"}},
        'lora.rank: expected a whole number, got "16"',
    ),
    "the issue's own": (
        {"phases": [{}, {"weights": {"identity": "1"}}]},
        'phases[1].weights.identity: expected a number, got "1"',
    ),
    "half a step": (
        {"phases": [{"steps": 2.5}]},
        "phases[0].steps: expected a whole number, got 2.5",
    ),
    "a float for an int": ({"variants": 16.0}, "variants: expected a whole number, got 16.0"),
    "variants and a half": ({"variants": 1.5}, "variants: expected a whole number, got 1.5"),
    "null": ({"variants": None}, "variants: expected a whole number, got null"),
    "true for an int": ({"lora": {"rank": True}}, "lora.rank: expected a whole number, got true"),
    "true for a float": ({"jitter": True}, "jitter: expected a number, got true"),
    "5 for a flag": ({"flip": 5}, "flip: expected true or false, got 5"),
    "1 for a flag": ({"masked": 1}, "masked: expected true or false, got 1"),
    "no for a flag": ({"masked": "no"}, 'masked: expected true or false, got "no"'),
    "a number for a text": ({"name": 5}, "name: expected a text, got 5"),
    "a text for a list": (
        {"prompts": {"composed": "a photo of {subject}"}},
        'prompts.composed: expected a list, got "a photo of {subject}"',
    ),
    "a wrong word in a list": (
        {"identity": {"tasks": ["compsed"]}},
        "identity.tasks[0]: expected one of source, style, composed, prior, words, unconditional, "
        'got "compsed"',
    ),
    "a word twice": (
        {"identity": {"tasks": ["source", "source"]}},
        "identity.tasks: expected each of them once",
    ),
    "a number for a word": ({"batching": 1}, "batching: expected one of together, in_turn"),
    "a list for a word": ({"batching": ["together"]}, "batching: expected one of"),
    "an empty list": ({"refocus": {"factors": []}}, "refocus.factors: expected one or more"),
    "no sentences": ({"prompts": {"prior": []}}, "prompts.prior: expected one or more in the list"),
    "a list for an object": (
        {"lora": []},
        "lora: expected an object with named settings",
    ),
    "a number among phases": ({"phases": [3]}, "phases[0]: expected an object"),
    "an object for a list": ({"phases": {}}, "phases: expected a list, got an object"),
    "NaN": ({"jitter": math.nan}, "jitter: expected a finite number, got NaN"),
    "infinity": (
        {"phases": [{"max_grad_norm": math.inf}]},
        "expected a finite number, got Infinity",
    ),
    "a number without end": ({"jitter": 10**400}, "jitter: expected a finite number"),
    "a whole number without end": (
        {"variants": 10**5000},
        "variants: expected 0 to 1000, got a value of type int",
    ),
    "below": ({"lora": {"rank": 0}}, "lora.rank: expected 1 to 512, got 0"),
    "above": ({"resolution": 100_000}, "resolution: expected 64 to 2048, got 100000"),
    "a member below": ({"refocus": {"factors": [4, 0]}}, "refocus.factors[1]: expected at"),
    "an unknown name": (
        {"lora": {"rnk": 4}},
        'lora.rnk: there is no such setting; did you mean "rank"',
    ),
    "an unknown name without kin": (
        {"qqq": 1},
        "qqq: there is no such setting; there are name",
    ),
    "a text without end": (
        {"name": "x" * 10**6},
        "name: expected at most 2000 characters",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_recipe_cannot_hold_is_refused_by_its_path(data, message):
    with pytest.raises(InputError) as error:
        from_dict(Recipe, data)
    assert message in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("data", [None, 3, "magicapture", [], [["name", "x"]]])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(InputError, match="Recipe: expected an object"):
        from_dict(Recipe, data)


SENTENCES = {
    "an attribute": ("source", "a {subject.__class__}", "only {subject}, {style} and {noun}"),
    "an index": ("source", "a {subject[0]}", "only {subject}, {style} and {noun}"),
    "six gigabytes": ("source", "a {subject:>3000000000}", "only {subject}, {style} and {noun}"),
    "a conversion": ("source", "a {subject!r}", "only {subject}, {style} and {noun}"),
    "by place": ("source", "a {subject} {}", "only {subject}, {style} and {noun}"),
    "another name": ("source", "a {person} {subject}", "only {subject}, {style} and {noun}"),
    "a lone brace": ("source", "a { {subject}", "only {subject}, {style} and {noun}"),
    "a lone closing brace": ("source", "a } {subject}", "only {subject}, {style} and {noun}"),
    "doubled braces": ("source", "a {{subject}}", "only {subject}, {style} and {noun}"),
    "a token's name": ("source", "{subject} by <oil-1>", "instead of a token's name"),
    "no subject": ("source", "a photo of a {noun}", "expected {subject} in the sentence"),
    "the style of the subject": ("source", "{subject} in {style}", "expected no {style}"),
    "no style": ("style", "a photo", "expected {style} in the sentence"),
    "the subject of the style": ("style", "{subject} in {style}", "expected no {subject}"),
    "one of two": ("composed", "a photo of {subject}", "expected {style} in the sentence"),
    "a class image's token": ("prior", "a photo of {subject}", "expected no {subject}"),
    "empty": ("prior", " ", "the sentence is empty"),
    "too long": ("prior", "a " * 300, "has 600 characters; expected at most 500"),
}


@pytest.mark.parametrize(("task", "sentence", "message"), SENTENCES.values(), ids=SENTENCES.keys())
def test_a_sentence_that_cannot_be_filled_in_is_refused(task, sentence, message):
    good = getattr(PromptTemplates(), task)[0]
    with pytest.raises(InputError) as error:
        from_dict(Recipe, {"prompts": {task: [good, sentence]}})
    assert str(error.value).startswith(f"prompts.{task}[1]: ")
    assert message in str(error.value)
    with pytest.raises(InputError, match=rf"PromptTemplates\.{task}\[0\]"):
        PromptTemplates(**{task: (sentence,)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraSettings(rank=0), "LoraSettings.rank: expected 1 to 512, got 0"),
        (lambda: LoraSettings(rank="16"), "LoraSettings.rank: expected a whole number"),
        (lambda: RefocusSettings(scaling="loud"), "expected one of minmax, max, mean, none"),
        (lambda: RefocusSettings(factors=4), "RefocusSettings.factors: expected a list, got 4"),
        (lambda: Phase(share=1.1), "Phase.share: expected 0.001 to 1, got 1.1"),
        (lambda: Phase(steps=float("nan")), "Phase.steps: expected a whole number, got NaN"),
        (lambda: Phase(rates=3), "Phase.rates: expected an object"),
        (lambda: PriorSettings(guidance=None), "expected a number, got null"),
        (lambda: SamplingSettings(width=100), "width: expected a multiple of 8, got 100"),
        (lambda: SamplingSettings(steps=30.0), "expected a whole number, got 30.0"),
    ],
)
def test_python_is_checked_as_a_file_is(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def test_lists_whole_numbers_and_numpy_become_what_the_hint_says():
    assert RefocusSettings(factors=[1, 2]) == RefocusSettings(factors=(1, 2))
    assert Recipe(lora={"rank": 4}) == Recipe(lora=LoraSettings(rank=4))
    assert isinstance(Rates(tokens=1).tokens, float)
    assert type(LoraSettings(rank=np.int64(8)).rank) is int
    assert LoraSettings(alpha=None).scale == 1


def test_every_setting_explains_itself():
    kinds = [k for k in vars(config).values() if isinstance(k, type) and issubclass(k, Checked)]
    assert len(kinds) > 8
    for kind in kinds:
        for field in fields(kind) if kind is not Checked else ():
            assert field.metadata["help"].endswith("."), (kind, field.name)


def test_help_shows_our_default_before_the_papers_and_the_releases():
    assert help_of(LoraSettings, "rank") == "Rank of the LoRA. (Release: 4.)"
    assert help_of(SamplingSettings, "steps", default=30).endswith(
        "(Default: 30; paper: 50; release: 50.)"
    )
    assert help_of(IdentitySettings, "straight_through").endswith("(Release: False.)")


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_recipe_survives_json(name):
    data = to_dict(recipe(name))
    assert json.loads(json.dumps(data)) == data
    assert from_dict(Recipe, data) == recipe(name)


def test_comments_are_dropped_at_every_depth():
    data = {
        "comment": "mine",
        "phases": [{"comment": ["two", "lines"], "rates": {"comment": None}}],
    }
    assert from_dict(Recipe, data) == Recipe(phases=(Phase(rates=Rates()),))


class Words(Mapping):
    """A mapping that reads itself, as a class of settings may."""

    def __init__(self, words=()):
        self.words = dict(words)

    def __getitem__(self, name):
        return self.words[name]

    def __iter__(self):
        return iter(self.words)

    def __len__(self):
        return len(self.words)

    __hash__ = object.__hash__

    @classmethod
    def read(cls, value, path):
        return cls({f"{path}.{name}": v for name, v in object_of(value, path).items()})


@dataclass(frozen=True)
class Outer(Checked):
    """Settings with words in them."""

    words: Words = setting(Words(), "Words.")


def test_a_class_may_read_itself():
    made = from_dict(Outer, {"words": {"a": 1, "comment": "dropped"}})
    assert to_dict(made) == {"words": {"words.a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nests too deep"),
        ('{"a":' * 100_000, "nests too deep"),
        ("{", "This is no JSON"),
        (b"\xff\xff\xff", "This is no JSON"),
        ('{"variants": 1, "variants": 2}', "'variants' stands twice"),
        ("1" * 5000, "This is no JSON"),
    ],
)
def test_a_text_that_is_no_json_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        from_json(text)


def test_json_of_any_unicode_encoding_is_read():
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert from_json('{"name": "ä"}'.encode(encoding)) == {"name": "ä"}


def test_the_recipes_are_those_they_were_as_code():
    """recipes.json: `to_dict` of each, before they became data files; settings came since.

    Their 512 px became the base model's own size, which for Stable Diffusion 1.x and 2.x is that.
    """
    before = json.loads((Path(__file__).parent / "recipes.json").read_text("utf-8"))
    for name, data in before.items():
        now = to_dict(recipe(name))
        since = {"subject_init", "subject_is", "labels", "words", "dino", "unconditional"}
        assert now.keys() - data.keys() == since
        assert now["resolution"] is None and data["resolution"] == recipe(name).side
        assert _holds(now, current(data) | {"resolution": None})
    assert set(before) == set(RECIPE_NAMES) - {DEFAULT, "things"}, "our own may change"


def _holds(now: Any, before: Any) -> bool:
    """Whether data are as before, but for losses of weight 0 that came since."""
    if isinstance(before, dict):
        new = {key: value for key, value in now.items() if key not in before}
        same = all(_holds(now[key], value) for key, value in before.items())
        return same and not any(v for v in new.values() if isinstance(v, float))
    if isinstance(before, list):
        return len(now) == len(before) and all(map(_holds, now, before))
    return bool(now == before)
