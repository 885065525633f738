"""What a step sees: rows, their prompts, and the random numbers that they come from."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from magicapture.config import Phase, PriorSettings, Rates, Weights
from magicapture.errors import InputError, MagiCaptureError
from magicapture.lora import check_peft
from magicapture.prompts import class_prompt
from magicapture.training import Prepared, Trainer
from magicapture.training.job import generator
from magicapture.training.prior import class_latents

PHASE = Phase("prior", 1, Rates(unet=1e-3), Weights(source=0, style=0, prior=1))


def test_class_images_are_trained_under_the_sentence_they_were_made_from(make_job, backbone):
    recipe = make_job().recipe
    sentences = ("a photo of a {noun}", "a sketch of a {noun} with round glasses", "a {noun}")
    job = make_job(
        phases=(PHASE,),
        prompts=replace(recipe.prompts, prior=sentences),
        prior=PriorSettings(images=5, steps=2),
    )
    with Trainer.open(job, backbone) as trainer:
        batches, chance = trainer.materials.batches, torch.Generator().manual_seed(0)
        for _ in range(40):
            (row,) = batches.rows(PHASE, chance)
            same = [torch.equal(row.latents[0], latents) for latents in batches.prior]
            index = same.index(True)
            assert row.prompt.text == class_prompt(job.recipe, job.subject.concept, index)
            assert row.prompt.text == sentences[index % 3].format(noun="woman")
        made = class_latents(backbone, job, lambda event: None)
    assert torch.equal(made, batches.prior)


@pytest.mark.parametrize(("steps", "accumulation", "made"), [(1, 2, 2), (2, 2, 4), (9, 1, 5)])
def test_no_more_class_images_than_the_steps_can_use(steps, accumulation, made, make_job, backbone):
    phases = (replace(PHASE, steps=steps), Phase("tokens", 50, Rates(), Weights()))
    job = make_job(phases=phases, accumulation=accumulation, prior=PriorSettings(images=5, steps=2))
    told = []
    latents = class_latents(backbone, job, told.append)
    assert len(latents) == made
    assert (told[0].total, told[-1].done) == (made, made)
    whole = make_job(phases=(replace(PHASE, steps=9),), prior=PriorSettings(images=5, steps=2))
    assert torch.equal(latents, class_latents(backbone, whole, told.append)[:made])


def test_random_numbers_do_not_depend_on_what_the_progress_bar_says(make_job, backbone):
    told = []
    job = make_job(pseudo_label="face_laid_in")
    with Trainer.open(job, backbone, listener=told.append) as trainer:
        batches = trainer.materials.batches
        caches = {
            "source": batches.source,
            "style": batches.reference,
            "composed": batches.composed,
        }
        for key, cache in caches.items():
            assert cache.seed == generator(job.seed, "variants", key).initial_seed()
    stages = {event.stage for event in told if isinstance(event, Prepared)}
    assert len(stages) == 3 and not stages & caches.keys()


def test_a_caption_that_pushes_the_token_out_is_found_before_anything_is_encoded(
    make_job, backbone
):
    job, told = make_job(), []
    caption = "a very tall tree " * 30 + "and <ada-1>"
    photos = job.subject.photos.known("captions", (None, caption, None, None))
    job = replace(job, subject=replace(job.subject, photos=photos))
    with (
        pytest.raises(InputError, match=r"image 2: The prompt 'a very .* \.\.\.' has") as caught,
        Trainer.open(job, backbone, listener=told.append),
    ):
        pass
    assert len(str(caught.value)) < 400
    assert not any(isinstance(event, Prepared) for event in told)


def test_a_peft_that_does_not_work_is_found_before_anything_is_encoded(
    make_job, backbone, monkeypatch
):
    told = []
    check_peft.cache_clear()
    monkeypatch.setitem(sys.modules, "peft", None)  # as where the package is missing
    with (
        pytest.raises(MagiCaptureError, match="pip install -U peft"),
        Trainer.open(make_job(), backbone, listener=told.append),
    ):
        pass
    assert not any(isinstance(event, Prepared) for event in told)
