"""A thing in a style: what is masked, what DINO is shown, that it learns, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.backbones import load_backbone
from magicapture.config import DinoSettings, Phase, PromptTemplates, Rates, Weights
from magicapture.data import Learnable, ReferenceSet
from magicapture.errors import InputError
from magicapture.paperdoll import pairs
from magicapture.paperdoll.weights import model_folder
from magicapture.recipes import check, recipe
from magicapture.training import Stepped, Trainer, Warned

SEEN = {"dino_structure": 0.1, "dino_patches": 0.2, "dino_style": 2.0}


@pytest.fixture
def make_thing(make_job):
    """A job of a thing: masks on its own photos alone, no landmarks anywhere."""

    def make(steps: int = 4, **weights: float):
        given = Weights({"source": 1, "style": 1, "attention": 1, **SEEN, **weights})
        phase = Phase("both", steps, Rates(tokens=1e-3, unet=1e-2), given)
        prompts = PromptTemplates(
            style=("a picture in the {style} style",),
            composed=("a picture of {subject} {noun} in the {style} style",),
        )
        job = make_job(
            subject_is="thing",
            phases=(phase,),
            prompts=prompts,
            dino=DinoSettings(min_snr=0.383 / 16),
        )
        bare = ReferenceSet.of(job.style.photos.images)
        return replace(job, style=Learnable(job.style.concept, bare))

    return make


def steps_of(job, backbone, dino, **more) -> list[Stepped]:
    events = []
    with Trainer.open(job, backbone, dino=dino, listener=events.append, **more) as trainer:
        trainer.run()
    assert not [e.text for e in events if isinstance(e, Warned)]
    return [e for e in events if isinstance(e, Stepped)]


def test_all_losses_run_without_a_face_or_a_mask_of_the_style(make_thing, backbone, dino):
    steps = steps_of(make_thing(8), backbone, dino)
    assert {name for step in steps for name in step.losses} == {
        "source",
        "style",
        "attention",
        *SEEN,
    }


@pytest.mark.parametrize("name", SEEN)
def test_each_of_the_losses_reaches_what_is_trained_and_is_lowered(name, make_thing, dino):
    """On the drawn faces' model, whose pictures are more than noise."""
    job, pair = make_thing(), pairs.make_pair(1_000_004, 1_000_054, poses=1)
    thing, style = (pairs.references(of) for of in (pair.source, pair.reference))
    phase = Phase("one", 9, Rates(1e-2, 1e-2), Weights({"source": 0, "style": 0, name: 1.0}))
    job = replace(
        job,
        subject=replace(job.subject, photos=thing),
        style=replace(job.style, photos=style),
        recipe=replace(job.recipe, phases=(phase,), variants=1),
    )
    with (
        Trainer.open(job, load_backbone(model_folder()), dino=dino) as trainer,
        trainer._phase(phase) as objective,
    ):
        (row,) = trainer.materials.batches.rows(phase, trainer.generator)
        values = []
        for _ in range(5):  # of one picture under one noise, at an SNR of 2
            losses = objective([replace(row, timestep=300)])
            trainer._optimizer.zero_grad()
            losses.total.backward()
            values.append(float(losses.by_name[name]))
            trainer._optimizer.step()
        parameters = [p for group in trainer._optimizer.param_groups for p in group["params"]]
        assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
    assert values[-1] < 0.95 * values[0], values


def test_the_composed_rows_are_the_things_photos_and_the_style_is_whole(make_thing, backbone, dino):
    job = make_thing()
    with Trainer.open(job, backbone, dino=dino) as trainer:
        batches = trainer.materials.batches
        rows = {row.task: row for row in batches.rows(job.recipe.phases[0], trainer.generator)}
        source, style, composed = (rows[task] for task in ("source", "style", "composed"))
        assert torch.equal(composed.latents, source.latents) and composed.face is not None
        assert torch.equal(source.supervised, source.face) and 0 < source.supervised.mean() < 1
        assert bool((style.supervised == 1).all()) and style.face is None
        assert "<ada-1>" in composed.prompt.text and "<oil-1>" in composed.prompt.text
        with trainer._phase(job.recipe.phases[0]) as objective:
            batch = objective.predict([source, style, composed], 0.0)
            assert bool((batch.region(2, "oil-1") == 1).all())  # a style is everywhere
            assert torch.equal(batch.region(2, "ada-1"), composed.face)


def test_pictures_of_the_style_may_have_masks_which_do_not_count(make_thing, make_job, backbone):
    job = make_thing()
    masked = replace(job, style=make_job().style, recipe=without_dino(job.recipe))
    with Trainer.open(masked, backbone) as trainer:
        rows = trainer.materials.batches.rows(trainer.recipe.phases[0], trainer.generator)
        assert all(bool((r.supervised == 1).all()) for r in rows if r.task == "style")


def without_dino(recipe):
    """The recipe without the losses that need DINO."""
    phase = recipe.phases[0]
    return replace(
        recipe, phases=(replace(phase, weights=phase.weights.changed(**dict.fromkeys(SEEN, 0))),)
    )


def test_the_base_model_is_as_it_was_and_dino_too(make_thing, backbone, dino):
    before = {k: v.clone() for k, v in dino.state_dict().items()}
    steps_of(make_thing(), backbone, dino)
    assert all(torch.equal(before[k], v) for k, v in dino.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in dino.parameters())


def test_a_stopped_run_goes_on_as_if_it_had_not(make_thing, make_backbone, dino, tmp_path):
    whole = steps_of(make_thing(), make_backbone(), dino)

    class StopError(Exception):
        pass

    def stop(event):
        if isinstance(event, Stepped) and event.step == 2:
            raise StopError

    job = make_thing()
    with (
        pytest.raises(StopError),
        Trainer.open(
            job, make_backbone(), dino=dino, listener=stop, state_folder=tmp_path
        ) as trainer,
    ):
        trainer.run()
    events = []
    with Trainer.open(
        job, make_backbone(), dino=dino, listener=events.append, state_folder=tmp_path
    ) as trainer:
        assert trainer.step == 2
        trainer.run()
    rest = [event.losses for event in events if isinstance(event, Stepped)]
    assert rest == [step.losses for step in whole[2:]]


def test_what_is_refused(make_thing, make_job, backbone, dino):
    job = make_thing()
    with pytest.raises(InputError, match=r"no DINO model is given\. Give one"):
        Trainer.open(job, backbone).__enter__()
    bare = ReferenceSet.of(job.subject.photos.images)
    with pytest.raises(InputError, match=r"no mask of the thing. Give one: NAME.mask.png"):
        replace(job, subject=Learnable(job.subject.concept, bare)).check()
    for weights, message in (
        ({"identity": 1.0}, "identity asks for portraits and faces"),
        ({"composed": 1.0}, "composed asks for portraits and faces"),
    ):
        with pytest.raises(InputError, match=message):
            make_thing(**weights).check()
    with pytest.raises(InputError, match="dino_style compares a thing with its photo"):
        check(replace(recipe("things"), subject_is="person"))


def test_a_class_word_of_people_is_told(make_thing):
    job = make_thing()
    assert not job.check()
    person = replace(job.subject.concept, class_word="person")
    (text,) = replace(job, subject=replace(job.subject, concept=person)).check()
    assert "learns a thing" in text and "--class-word" in text


def test_a_recipe_of_people_is_digested_as_before():
    settings = recipe("paper").settings()
    assert "subject_is" not in settings and "dino" not in settings
    assert not any(name.startswith("dino") for p in settings["phases"] for name in p["weights"])
    assert recipe("things").settings()["phases"][1]["weights"]["dino_style"] == 2


def test_the_recipe_says_no_word_of_people():
    prompts = recipe("things").prompts
    sentences = (*prompts.source, *prompts.style, *prompts.composed)
    assert not any(w in s for s in sentences for w in ("person", "portrait", "face"))
    assert not any("{noun}" in sentence for sentence in prompts.style)
