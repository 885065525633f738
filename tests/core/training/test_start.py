"""What the subject's token starts from, by the recipe and by the concept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.config import Phase, Rates, Weights
from magicapture.recipes import recipe
from magicapture.tokens import Prompt
from magicapture.training import Trainer


def started(make_job, backbone, init=None, **changes):
    """The subject's vectors before step 1, and how far its prompt is from the class word's."""
    phase = Phase("tokens", 1, Rates(tokens=1e-3), Weights(source=1, style=1))
    job = make_job(phases=(phase,), **changes)
    concept = replace(job.subject.concept, init=init)
    job = replace(job, subject=replace(job.subject, concept=concept))
    with Trainer.open(job, backbone) as trainer, torch.no_grad():
        prompts = [Prompt("a photo of <ada-1> woman"), Prompt("a photo of woman woman")]
        ours, word = backbone.encode_prompts(prompts, trainer.vectors).context
        return trainer.vectors.tensors(), float((ours - word).abs().max())


def test_dreambooth_has_an_identifier_of_its_own(make_job, backbone):
    """Its token never moves: begun as the class word it would be that word for good."""
    assert recipe("dreambooth").subject_init == "random"
    assert not any(phase.rates.tokens for phase in recipe("dreambooth").phases)
    vectors, distance = started(make_job, backbone, subject_init=recipe("dreambooth").subject_init)
    assert distance > 1e-3
    word = backbone.word_vectors("clip_l", "woman")[-1]
    norm = vectors["ada-1"]["clip_l"].norm()
    assert float(norm) == pytest.approx(float(word.norm()), rel=1e-4)


def test_others_begin_with_the_class_word_and_the_style_is_the_same(make_job, backbone):
    word, distance = started(make_job, backbone)
    assert distance == 0
    random, _ = started(make_job, backbone, subject_init="random")
    assert torch.equal(word["oil-1"]["clip_l"], random["oil-1"]["clip_l"])
    assert not torch.equal(word["ada-1"]["clip_l"], random["ada-1"]["clip_l"])


def test_a_concept_that_names_its_start_keeps_it(make_job, backbone):
    named, _ = started(make_job, backbone, init="dog", subject_init="random")
    dog = backbone.word_vectors("clip_l", "dog").detach()
    assert torch.equal(named["ada-1"]["clip_l"], dog[-1:].float())
