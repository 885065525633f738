"""The nodes that choose, load and tune a recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def nodes(pack):
    """The recipes' nodes by the end of their class names."""
    found = vars(pack("nodes.recipes")).items()
    return SimpleNamespace(
        **{k.removeprefix("MagiCapture"): v for k, v in found if k.startswith("MagiCapture")}
    )


@pytest.fixture
def recipes(pack):
    return pack("magicapture.recipes")


@pytest.fixture
def folder(pack):
    """ComfyUI's folder of recipe files, empty."""
    (folder,) = pack.comfy.model_folders("magicapture/recipes")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for file in folder.glob("*"):
        file.unlink()


def tune(nodes, recipe, **changes):
    """The recipe through Tune Recipe, its other inputs at their defaults."""
    inputs = {i.id: i.default for i in nodes.TuneRecipe.define_schema().inputs if i.id != "recipe"}
    return nodes.TuneRecipe.execute(recipe, **{**inputs, **changes})[0]


def test_a_recipe_tuned_by_nothing_is_the_same(nodes, recipes):
    for name in recipes.RECIPE_NAMES:
        assert tune(nodes, recipes.recipe(name)) == recipes.recipe(name)
        chosen = nodes.ChooseRecipe.execute(name, 0, -1, -1, 1.0, False)[0]
        assert chosen == recipes.recipe(name)


@pytest.mark.parametrize("loss", ["composed", "identity", "attention"])
def test_a_weight_acts_where_the_recipe_has_none(nodes, recipes, loss):
    bare = recipes.recipe("textual-inversion")
    assert not bare.uses(loss)
    assert tune(nodes, bare, **{f"{loss}_weight": 0.5}).uses(loss)

    ours = recipes.recipe()
    off = tune(nodes, ours, **{f"{loss}_weight": 0.0})
    assert not off.uses(loss)
    own = getattr(ours.phases[1].weights, loss)
    assert tune(nodes, off, **{f"{loss}_weight": own}) == ours


def test_every_loss_has_a_weight_a_new_one_too(nodes, recipes, pack):
    losses = pack("magicapture.losses")

    class Shrink(losses.Loss):
        name, help = "shrink", "Pull of the output towards 0."

    def weights():
        inputs = nodes.TuneRecipe.define_schema().inputs
        return [i.id.removesuffix("_weight") for i in inputs if i.id.endswith("_weight")]

    assert sorted(weights()) == sorted(losses.LOSSES)
    assert weights()[-1] == nodes.TuneRecipe.define_schema().inputs[-1].id.removesuffix("_weight")
    with losses.LOSSES.added(Shrink()):
        assert weights()[-1] == "shrink"
        tuned = tune(nodes, recipes.recipe(), shrink_weight=0.5)
        assert tuned.phases[1].weights.shrink == 0.5 and tuned.phases[0].weights.shrink == 0
    assert "shrink" not in weights()


@pytest.mark.parametrize("group", ["tokens", "unet", "text_encoder"])
def test_a_rate_acts_where_the_recipe_has_none(nodes, recipes, group):
    name = {"tokens": "token_rate"}.get(group, f"{group}_rate")
    for recipe in map(recipes.recipe, recipes.RECIPE_NAMES):
        off = tune(nodes, recipe, **{name: 0.0})
        assert not any(getattr(phase.rates, group) for phase in off.phases)
        on = tune(nodes, off, **{name: 1e-4})
        assert any(getattr(phase.rates, group) for phase in on.phases)


def test_masks_off_and_a_weight_that_needs_them_are_refused(nodes, recipes, pack):
    ours = recipes.recipe()
    assert not tune(nodes, ours, masks="off").uses("attention")
    with pytest.raises(pack("magicapture.errors").InputError, match="attention_weight needs masks"):
        tune(nodes, ours, masks="off", attention_weight=0.1)


def test_a_value_out_of_range_is_named_by_its_path(nodes, recipes, pack):
    with pytest.raises(pack("magicapture.errors").InputError, match=r"Tune Recipe: lora\.alpha"):
        tune(nodes, recipes.recipe(), alpha=0.0)


def test_choose_recipe_says_what_each_is(nodes, recipes):
    name = nodes.ChooseRecipe.define_schema().inputs[0]
    for one in recipes.RECIPE_NAMES:
        steps = sum(phase.steps for phase in recipes.recipe(one).phases)
        assert f"{one} ({steps:,} steps, rank " in name.tooltip
        assert f"): {recipes.comment_of(one)}" in name.tooltip


def test_a_resolution_of_512_can_be_typed(nodes):
    """The page snaps a whole number to min plus a multiple of step."""
    inputs = {i.id: i for i in nodes.ChooseRecipe.define_schema().inputs}
    resolution = inputs["resolution"]
    assert (512 - resolution.min) % resolution.step == 0


def test_load_recipe_reads_a_file_and_its_changes(nodes, recipes, folder):
    nothing = nodes.LoadRecipe.define_schema().inputs[0].options
    assert len(nothing) == 1 and "models/magicapture/recipes" in nothing[0]

    data = recipes.commented("paper") | {"name": "mine"}
    (folder / "mine.json").write_text(json.dumps(data))
    (folder / "notes.txt").write_text("no recipe")
    assert nodes.LoadRecipe.define_schema().inputs[0].options == ["mine.json"]
    loaded = nodes.LoadRecipe.execute("mine.json")[0]
    assert loaded == recipes.changed(recipes.recipe("paper"), {"name": "mine"})
    changed = nodes.LoadRecipe.execute("mine.json", "# smaller\nlora.rank=4\n\nflip=false\n")[0]
    assert (changed.lora.rank, changed.flip) == (4, False)


def test_load_recipe_looks_again_when_the_file_changes(nodes, folder):
    file = folder / "mine.json"
    file.write_text("{}")
    before = nodes.LoadRecipe.fingerprint_inputs("mine.json")
    assert nodes.LoadRecipe.fingerprint_inputs("mine.json") == before
    file.write_text('{"name": "x"}')
    assert nodes.LoadRecipe.fingerprint_inputs("mine.json") != before


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ('{"lora": {"rank": "16"}}', "", 'lora.rank: expected a whole number, got "16"'),
        ("[" * 100_000, "", "nests too deep"),
        ("{}", "", "phases: it has no steps to train"),
        ('{"phases": [{"rates": {"tokens": 0}}]}', "", "phases[0].rates: every learning rate is 0"),
        (
            '{"phases": [{}]}',
            "lora.rnk=4",
            'lora.rnk: there is no such setting; did you mean "rank"',
        ),
        ('{"phases": [{}]}', "rank", "Expected PATH=VALUE"),
    ],
)
def test_load_recipe_names_what_is_wrong(nodes, pack, folder, text, changes, message):
    (folder / "mine.json").write_text(text)
    with pytest.raises(pack("magicapture.errors").InputError) as error:
        nodes.LoadRecipe.execute("mine.json", changes)
    assert message in str(error.value)
    assert str(error.value).startswith("Load Recipe: ")


def test_a_name_does_not_leave_the_folder(nodes, pack, folder):
    (folder / "mine.json").write_text('{"phases": [{}]}')
    outside = folder.parent / "secret.json"
    outside.write_text('{"phases": [{}]}')
    try:
        for name in ("../secret.json", os.fspath(outside), "nothing.json", "", ".", "notes.txt"):
            with pytest.raises(pack("magicapture.errors").InputError, match="There is no recipe"):
                nodes.LoadRecipe.execute(name)
    finally:
        Path(outside).unlink()
