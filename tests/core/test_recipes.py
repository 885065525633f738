"""Recipes: the named ones, files of the user, changes by path, and what cannot be trained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from magicapture.config import (
    IdentitySettings,
    LabelSettings,
    Phase,
    PriorSettings,
    Rates,
    Recipe,
    RefocusSettings,
    Weights,
    from_dict,
    to_dict,
)
from magicapture.errors import InputError, StorageError
from magicapture.older import snr_between
from magicapture.recipes import (
    DEFAULT,
    RECIPE_NAMES,
    changed,
    check,
    comment_of,
    commented,
    miniature,
    parse_changes,
    read_recipe,
    recipe,
    spelled,
    with_rate,
    with_rates,
    with_steps,
    with_weights,
    without_masks,
)
from magicapture.schedule import DiscreteLevels, stable_diffusion_snr
from magicapture.tokens import Concept

# -- the named ones ---------------------------------------------------------------------------


def test_every_named_recipe_says_what_it_is_and_can_be_trained():
    assert RECIPE_NAMES[0] == DEFAULT and len(RECIPE_NAMES) == 7
    for name in RECIPE_NAMES:
        assert recipe(name).name == name
        assert comment_of(name).endswith(".")
        assert check(recipe(name)) == ()


def test_comments_are_printed_with_all_settings_and_read_again():
    data = commented("paper")
    assert data["comment"] == comment_of("paper")
    assert data["refocus"]["comment"].startswith("Equation 8")
    assert data["refocus"]["middle"] is False  # a default, which the file leaves out
    assert from_dict(Recipe, json.loads(json.dumps(data))) == recipe("paper")


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"'papper'; there are magicapture, .*paper, release"):
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
    assert release.phases[1].rates.unet == 4e-4 and release.phases[1].share == 0.8
    assert release.normalise_area and release.refocus.map_size == 64
    assert release.lora.rank == 4 and release.identity.min_snr == snr_between(800)


# -- files of the user ------------------------------------------------------------------------


def test_a_file_is_read_with_its_comments_and_named_after_itself(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"comment": "x", "phases": [{"steps": 7}]}', "utf-16")  # PowerShell's ">"
    assert read_recipe(file) == Recipe("mine", (Phase(steps=7),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nests too deep"),
        (b"[]", "expected an object"),
        (b"no", "This is no JSON"),
        (b" " * 1_000_001, "more than 1000000 bytes"),
        (b'{"lora": {"rank": "16"}}', 'lora.rank: expected a whole number, got "16"'),
    ],
)
def test_a_file_that_holds_no_recipe_is_named(tmp_path, content, message):
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_recipe(file)
    assert message in str(error.value) and str(error.value).startswith(str(file))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for file in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(StorageError, match="cannot be read"):
            read_recipe(file)


# -- of earlier versions ----------------------------------------------------------------------

EARLIER = {
    "phases": [{"max_timestep": 1000}, {"max_timestep": 800}],
    "identity": {"max_timestep": 500, "comment": "T'"},
    "labels": {"face_above": 600},
}


def test_a_recipe_of_an_earlier_version_acts_at_the_same_timesteps(tmp_path, caplog):
    file = tmp_path / "mine.json"
    levels = DiscreteLevels(1 - 1 / (1 + stable_diffusion_snr().float()))
    for side in (512, 128, 768):
        file.write_text(json.dumps({"resolution": side, **EARLIER}))
        with caplog.at_level("INFO", "magicapture"):
            made = read_recipe(file)
        assert [phase.share for phase in made.phases] == [1, 0.8]
        assert levels.limit(made.snr(made.identity.min_snr)) == 500
        assert levels.limit(made.snr(made.labels.max_snr)) == 600
        assert "identity.max_timestep = 500 is of an earlier version" in caplog.text
    assert "read as min_snr = 0.383." in caplog.text
    assert from_dict(Recipe, to_dict(made)) == made
    file.write_text('{"labels": {"face_above": 0}, "identity": {"max_timestep": 1000}}')
    assert read_recipe(file) == replace(
        Recipe("mine"), identity=IdentitySettings(min_snr=0), labels=LabelSettings(max_snr=None)
    )


def test_every_timestep_of_earlier_versions_is_a_limit_of_its_own():
    levels = DiscreteLevels(1 - 1 / (1 + stable_diffusion_snr().float()))
    assert [levels.limit(snr_between(t)) for t in range(1, 1001)] == list(range(1, 1001))
    assert IdentitySettings().min_snr == snr_between(500)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"identity": {"max_timestep": 0}}, "identity.max_timestep: expected a whole number, 1"),
        ({"identity": {"max_timestep": "5"}}, "identity.max_timestep: expected a whole number, 1"),
        ({"labels": {"face_above": -1}}, "labels.face_above: expected a whole number, 0 to 1000"),
        ({"phases": [{"max_timestep": 1001}]}, "phases[0].max_timestep: expected a whole number"),
        ({"phases": [{"max_timestep": True}]}, "phases[0].max_timestep: expected a whole number"),
        ({"phases": 3, "identity": None}, "phases: expected a list"),
        ({"resolution": "x", "identity": {"max_timestep": 5}}, "resolution: expected a whole"),
    ],
)
def test_a_timestep_out_of_range_is_refused_by_its_older_name(data, message):
    with pytest.raises(InputError) as error:
        from_dict(Recipe, data)
    assert message in str(error.value)


def test_a_change_may_have_an_older_name():
    lines = ["identity.max_timestep=400", "phases[*].max_timestep=900", "labels.face_above=600"]
    made = changed(recipe(), parse_changes(lines))
    assert (made.identity.min_snr, made.labels.max_snr) == (0.74, snr_between(600))
    assert [phase.share for phase in made.phases] == [0.9, 0.9]
    assert changed(recipe(), {"phases[1].max_timestep": 800}).phases[0].share == 1
    with pytest.raises(InputError, match=r"lora\.max_timestep: there is no such setting"):
        changed(recipe(), {"lora.max_timestep": 3})


# -- changes by path --------------------------------------------------------------------------


def test_any_field_can_be_changed_by_its_path():
    changes = parse_changes(
        [
            "lora.rank=4",
            "# a comment, and an empty line",
            "",
            "phases[1].weights.identity = 0.25",
            "phases[*].schedule=linear",
            'prompts.source=["a photo of {subject} {noun}"]',
            "prompts.style[0]=a {noun} = {style}",
            "flip=true",
            "lora.alpha=null",
            'identity={"max_timestep": 400}',
        ]
    )
    made = changed(recipe("paper"), changes)
    assert made.lora.rank == 4 and made.flip and made.lora.alpha is None
    assert made.phases[1].weights.identity == 0.25 and made.phases[0].weights.identity == 0
    assert [phase.schedule for phase in made.phases] == ["linear", "linear"]
    assert made.prompts.source == ("a photo of {subject} {noun}",)
    assert made.prompts.style[0] == "a {noun} = {style}"
    assert made.identity == replace(recipe("paper").identity, min_snr=0.74)
    assert changed(recipe("paper"), {}) == recipe("paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lora.rnk=3", 'lora.rnk: there is no such setting; did you mean "rank"?'),
        ("phases[1].weights.identty=3", "phases[1].weights.identty: there is no such setting"),
        ("phases[1].wieghts.identity=3", "phases[1].wieghts: there is no such setting; did you"),
        ("phases[2].steps=3", "phases[2]: there is none; expected 0 to 1"),
        ("phases[-1].steps=3", "is no path of a setting"),
        ("phases.steps=3", "phases is a list; write phases[0]"),
        ("steps.x=3", "steps: there is no such setting"),
        ("flip.x=3", "flip: there is no 'x' in it"),
        ("comment=3", "comment: there is no such setting"),
        ("[0]=3", "is no path of a setting"),
        ("a b=3", "is no path of a setting"),
        ("lora.=3", "is no path of a setting"),
        ("lora.rank", "Expected PATH=VALUE"),
        ("=3", "Expected PATH=VALUE"),
        ("lora.rank=", 'lora.rank: expected a whole number, got ""'),
        ("lora.rank=16.5", "lora.rank: expected a whole number, got 16.5"),
        ("flip=yes", 'flip: expected true or false, got "yes"'),
        ("jitter=NaN", "jitter: expected a finite number, got NaN"),
        ("name=" + "[" * 100_000, "name: expected at most 2000 characters"),
    ],
)
def test_a_change_that_leads_nowhere_is_refused_by_its_path(change, message):
    with pytest.raises(InputError) as error:
        changed(recipe("paper"), parse_changes([change]))
    assert message in str(error.value)


# -- steps, rates and weights -----------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 10, 333, 5000])
def test_steps_are_shared_out_among_the_phases(steps):
    scaled = with_steps(recipe("paper"), steps)
    assert scaled.steps == steps
    assert all(phase.steps >= 1 for phase in scaled.phases)


def test_steps_keep_short_and_idle_phases_as_they_are():
    phases = tuple(Phase(steps=n, warmup=n) for n in (1000, 1000, 0, 1, 0))
    for steps in (3, 4, 100):
        scaled = with_steps(Recipe(phases=phases), steps)
        assert scaled.steps == steps
        assert [phase.steps > 0 for phase in scaled.phases] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("changing", "steps", "message"),
    [
        (recipe("paper"), 1, "too few for the 2 phases"),
        (recipe("paper"), 0, "too few for the 2 phases"),
        (Recipe(), 5, "no steps to train"),
        (Recipe(phases=(Phase(steps=0),)), 5, "no steps to train"),
    ],
)
def test_steps_that_cannot_be_shared_out_are_refused(changing, steps, message):
    with pytest.raises(InputError, match=message):
        with_steps(changing, steps)


def test_a_weight_goes_where_the_loss_has_one():
    made = with_weights(with_rates(recipe("paper"), 2.0), attention=0.5, source=3)
    assert made.phases[1].rates.unet == 2e-4 and made.phases[0].rates.unet == 0
    assert [p.weights.attention for p in made.phases] == [0, 0.5]
    assert [p.weights.source for p in made.phases] == [3, 3]


def test_a_weight_of_a_loss_that_has_none_is_not_dropped():
    for name, losses in (("textual-inversion", [1.0]), ("paper", [0, 1.0]), ("dreambooth", [1.0])):
        for loss in ("composed", "identity", "attention", "prior"):
            before = with_weights(recipe(name), **{loss: 0})
            assert not before.uses(loss)
            made = with_weights(before, **{loss: 1})
            assert [getattr(p.weights, loss) for p in made.phases] == losses
    again = with_weights(with_weights(recipe(), identity=0), identity=0.5)
    assert again == recipe()
    assert with_weights(with_weights(recipe(), style=0), style=1) == recipe()


def test_a_rate_of_a_group_that_has_none_is_not_dropped():
    def rates(made, group):
        return [getattr(phase.rates, group) for phase in made.phases]

    for group, expected in (("tokens", [1, 1]), ("unet", [0, 1]), ("text_encoder", [0, 1])):
        none = with_rate(recipe("paper"), group, 0)
        assert rates(none, group) == [0, 0]
        assert rates(with_rate(none, group, 1), group) == expected
    assert rates(with_rate(recipe("textual-inversion"), "unet", 1), "unet") == [1]
    assert rates(with_rate(recipe("dreambooth"), "tokens", 1), "tokens") == [1]
    with pytest.raises(InputError, match=r"phases\[0\]\.rates\.unett: there is no such setting"):
        with_rate(recipe("dreambooth"), "unett", 1)


def test_without_masks_nothing_asks_for_one():
    made = without_masks(recipe())
    assert made.pseudo_label == "portrait" and made.phases[-1].weights.composed == 1
    assert not made.masked and not made.uses("attention") and made.uses("identity")


@pytest.mark.parametrize("name", [name for name in RECIPE_NAMES if name != "textual-inversion"])
def test_every_recipe_of_a_lora_trains_phrases(name):
    """Without vectors the LoRA trains in every phase, at one rate; again, it stays so."""
    both = Concept("ada", "subject", vectors=0), Concept("ink", "style", vectors=0)
    before, made = recipe(name), spelled(recipe(name), both)
    assert check(made, vectors=False) == () and spelled(made, both) == made
    assert made.steps == before.steps and made.phases[-1].weights.identity == (
        before.phases[-1].weights.identity
    )
    assert {(p.rates.tokens, p.rates.unet, p.rates.text_encoder) for p in made.phases} == {
        (0, before.phases[-1].rates.unet, before.phases[-1].rates.text_encoder)
    }
    for phase, old in zip(made.phases, before.phases, strict=True):
        for held in ("attention", "unconditional"):
            assert phase.weights[held] == before.phases[-1].weights[held]
        assert not phase.weights.token_norm
        kept = {"attention": 0, "token_norm": 0, "unconditional": 0}
        assert phase.weights.changed(**kept) == old.weights.changed(**kept)


def test_beside_a_phrase_vectors_train_on():
    one = Concept("ada", "subject", vectors=0), Concept("ink", "style")
    first, last = spelled(recipe("release"), one).phases
    assert (first.rates.tokens, first.rates.unet) == (2e-3, last.rates.unet)
    assert first.weights.token_norm == 0.01 and last == recipe("release").phases[1]


def test_vectors_alone_teach_no_phrase():
    one = Concept("ada", "subject", vectors=0), Concept("ink", "style")
    with pytest.raises(InputError, match="'textual-inversion' trains the tokens' vectors alone"):
        spelled(recipe("textual-inversion"), one)
    assert spelled(recipe("paper"), (replace(one[0], vectors=1), one[1])) == recipe("paper")


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
    assert small.snr(small.identity.min_snr) == whole.snr(whole.identity.min_snr)
    hidden = replace(whole, labels=LabelSettings(max_snr=0.2))
    assert miniature(hidden).snr(miniature(hidden).labels.max_snr) == hidden.snr(0.2)


# -- what cannot be trained -------------------------------------------------------------------

GOOD = Phase("a", 4, Rates(tokens=1e-3, unet=1e-4), Weights(source=1, style=1))
ONLY_TOKENS = Rates(tokens=1e-3)


def of(**changes):
    """A recipe of one good phase and one with these changes."""
    return Recipe("mine", (GOOD, replace(GOOD, **changes)))


CANNOT = {
    "no phases": (Recipe("mine"), "phases: it has no steps to train"),
    "no steps": (Recipe("mine", (Phase(steps=0),)), "phases: it has no steps to train"),
    "no rates": (of(rates=Rates()), "phases[1].rates: every learning rate is 0"),
    "no weights": (of(weights=Weights(source=0, style=0)), "phases[1].weights: no loss looks at"),
    "attention alone": (
        of(weights=Weights(source=0, style=0, attention=1)),
        "phases[1].weights: no loss looks at",
    ),
    "class images without images": (
        of(weights=Weights(prior=1)),
        "prior.images: expected 1 or more",
    ),
    "class images for tokens": (
        replace(of(rates=ONLY_TOKENS, weights=Weights(prior=1)), prior=PriorSettings(images=2)),
        "phases[1].weights.prior: class images hold no token",
    ),
    "identity on class images": (
        replace(of(weights=Weights(identity=1)), identity=IdentitySettings(tasks=("prior",))),
        "identity.tasks: class images show other people",
    ),
    "norms of tokens at rest": (
        of(rates=Rates(unet=1e-4), weights=Weights(token_norm=1)),
        "phases[1].weights.token_norm: the tokens are not trained",
    ),
    "half a latent cell": (replace(of(), resolution=500), "resolution: expected a multiple of 8"),
}


@pytest.mark.parametrize(("made", "message"), CANNOT.values(), ids=CANNOT.keys())
def test_a_recipe_that_cannot_train_is_refused_by_its_path(made, message):
    with pytest.raises(InputError) as error:
        check(made)
    assert str(error.value).startswith("The recipe 'mine' cannot be trained:")
    assert message in str(error.value)


def test_all_that_is_wrong_with_a_recipe_is_told_at_once():
    with pytest.raises(InputError, match=r"\n- resolution.*\n- phases\[1\]\.rates"):
        check(replace(of(rates=Rates()), resolution=500))


def test_a_phase_without_steps_may_hold_anything():
    assert check(of(steps=0, rates=Rates(), weights=Weights(prior=1))) == ()


WARNED = {
    "attention on tasks that do not run": (
        replace(of(weights=Weights(attention=1)), refocus=RefocusSettings(tasks=("composed",))),
        "phases[1].weights.attention does nothing: it looks at composed",
    ),
    "a warm-up without end": (of(warmup=4), "phases[1].warmup"),
    "identity on portraits": (
        replace(of(weights=Weights(identity=1)), identity=IdentitySettings(tasks=("style",))),
        "identity.tasks: with style",
    ),
    "a token that says the class word": (
        Recipe("mine", (replace(GOOD, rates=Rates(unet=1e-4)),)),
        "subject_init: the subject's token starts from its class word",
    ),
}


@pytest.mark.parametrize(("made", "message"), WARNED.values(), ids=WARNED.keys())
def test_what_is_likely_a_mistake_is_warned_about(made, message):
    (warning,) = check(made)
    assert warning.startswith(message)
    assert check(of()) == ()


def test_a_change_of_data_leaves_the_recipe_as_it_was():
    before = to_dict(recipe())
    changed(recipe(), {"lora.rank": 4, "phases[*].steps": 1})
    assert to_dict(recipe()) == before
