"""Dolls train the recipes that users get, and no others."""

from __future__ import annotations

import re

import pytest

from magicapture.config import to_dict
from magicapture.paperdoll import identity_from_seed, style_from_seed
from magicapture.paperdoll.captions import read, vocabulary
from magicapture.paperdoll.edits import edits
from magicapture.paperdoll.recipe import EDITS, RATES, doll_recipe
from magicapture.recipes import RECIPE_NAMES, miniature, recipe

OF_DOLLS = {"prompts", "weighting", "flip"}


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_recipe_differs_by_the_world_it_is_in_alone(name):
    mine, shipped = to_dict(doll_recipe(name)), to_dict(miniature(recipe(name)))
    for phase, other in zip(mine["phases"], shipped["phases"], strict=True):
        rates = {group: RATES.get(name, 1) * rate for group, rate in other["rates"].items()}
        assert phase.pop("rates") == pytest.approx(rates)
        del other["rates"]
    assert mine["words"].pop("edits") == list(EDITS)
    del shipped["words"]["edits"]
    differing = {key for key in shipped if mine[key] != shipped[key]}
    assert differing <= OF_DOLLS and not mine["flip"]


def test_the_shipped_default_mirrors_nothing_so_dolls_need_not_differ():
    assert not recipe().flip


def test_words_are_known_and_never_those_of_a_test():
    known = set(vocabulary())
    assert all(set(re.findall(r"\w+", words)) <= known for words in EDITS)
    assert all(read(words) for words in EDITS)
    kept = {said[:2] for words in EDITS for said in read(words)}
    asked = [
        edit.words
        for seed in range(200)
        for edit in edits(identity_from_seed(seed), style_from_seed(seed)).values()
    ]
    for words in set(asked):
        assert not kept & {said[:2] for said in read(words)}, words
