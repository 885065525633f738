"""Settings: ranges, help, and the way through JSON."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from magicapture import config
from magicapture.config import LoraSettings, Phase, Recipe, RefocusSettings, from_dict, to_dict
from magicapture.errors import InputError
from magicapture.recipes import (
    RECIPE_NAMES,
    miniature,
    recipe,
    with_rates,
    with_steps,
    with_weights,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraSettings(rank=0), "rank is 0; expected 1 to 512"),
        (lambda: RefocusSettings(scaling="loud"), "expected one of minmax, max, mean, none"),
        (lambda: RefocusSettings(factors=(4, 0)), "expected at least 1"),
        (lambda: Phase(max_timestep=1001), "expected 1 to 1000"),
        (lambda: Phase(steps=float("nan")), "expected 0 to"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_was_expected(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_every_setting_explains_itself():
    kinds = [
        k for k in vars(config).values() if isinstance(k, type) and issubclass(k, config.Checked)
    ]
    assert len(kinds) > 8
    for kind in kinds:
        for field in fields(kind) if kind is not config.Checked else ():
            assert field.metadata["help"].endswith("."), (kind, field.name)
    assert config.help_of(LoraSettings, "rank").endswith("(Release: 4.)")


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_recipe_survives_json(name):
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe(name))))) == recipe(name)


def test_a_setting_of_another_version_is_refused():
    with pytest.raises(InputError, match="no setting colour"):
        from_dict(Recipe, {"colour": 1})


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="magicapture, paper, release"):
        recipe("papper")


def test_the_paper_and_the_release_are_as_published():
    paper, release = recipe("paper"), recipe("release")
    assert [p.steps for p in paper.phases] == [1200, 1500]
    assert paper.phases[0].rates.tokens == 5e-4
    assert (paper.phases[1].rates.unet, paper.phases[1].rates.tokens) == (1e-4, 1e-5)
    assert (paper.phases[1].weights.identity, paper.phases[1].weights.attention) == (1, 2.5)
    assert paper.accumulation == 4 and not paper.normalise_area
    assert paper.refocus.scaling == release.refocus.scaling == "minmax"
    assert release.phases[0].rates.tokens == 2e-3
    assert release.phases[1].rates.unet == 4e-4 and release.phases[1].max_timestep == 800
    assert release.normalise_area and release.refocus.map_size == 64
    assert release.lora.rank == 4 and release.identity.max_timestep == 800


@pytest.mark.parametrize("steps", [2, 3, 10, 333, 5000])
def test_steps_are_shared_out_among_the_phases(steps):
    scaled = with_steps(recipe("paper"), steps)
    assert scaled.steps == steps
    assert all(phase.steps >= 1 for phase in scaled.phases)


def test_too_few_steps_are_refused():
    with pytest.raises(InputError, match="too few for the 2 phases"):
        with_steps(recipe("paper"), 1)


def test_rates_and_weights_change_only_what_is_there():
    changed = with_weights(with_rates(recipe("paper"), 2.0), attention=0.5, prior=3.0)
    assert changed.phases[1].rates.unet == 2e-4 and changed.phases[0].rates.unet == 0
    assert changed.phases[1].weights.attention == 0.5 and changed.phases[0].weights.attention == 0
    assert not changed.uses("prior")


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_miniature_is_a_quarter_whose_way_is_as_long(name):
    whole, small = recipe(name), miniature(recipe(name))
    assert small.resolution == 128 and small.prior.images == whole.prior.images / 4
    for before, after in zip(whole.phases, small.phases, strict=True):
        assert after.steps == pytest.approx(before.steps / 4, abs=1)
        assert after.rates.tokens == pytest.approx(4 * before.rates.tokens)
        assert after.weights == before.weights
    assert recipe("paper").refocus.factors == (4,) and miniature(
        recipe("paper")
    ).refocus.factors == (2,)
    assert miniature(recipe("release")).refocus.map_size == 16
