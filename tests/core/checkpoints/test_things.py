"""Checkpoints of a thing: scored by the DINO of its losses, and never by a face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from magicapture.backbones import load_backbone
from magicapture.checkpoints import Checkpoints
from magicapture.config import DinoSettings, PromptTemplates, Weights
from magicapture.data import central
from magicapture.errors import InputError
from magicapture.paperdoll.weights import model_folder
from magicapture.refocusing import mean_leakage
from magicapture.training import Trainer, TrainingJob
from magicapture.training.job import generator
from magicapture.training.look import look

SEEN = {"dino_structure": 0.1, "dino_patches": 0.2, "dino_style": 2.0}


@pytest.fixture
def thing(job: TrainingJob) -> Callable[..., TrainingJob]:
    """The job of a thing; by words, its weights."""

    def make(**weights: float) -> TrainingJob:
        known = Weights({"source": 1, "style": 1, "attention": 1, **weights})
        prompts = PromptTemplates(
            style=("a picture in the {style} style",),
            composed=("a picture of {subject} {noun} in the {style} style",),
        )
        phases = tuple(replace(phase, weights=known) for phase in job.recipe.phases[1:])
        changes = {"phases": phases, "prompts": prompts, "dino": DinoSettings(min_snr=0)}
        recipe = replace(job.recipe, subject_is="thing", **changes)
        toy = replace(job.subject.concept, class_word="toy")
        return replace(job, recipe=recipe, subject=replace(job.subject, concept=toy))

    return make


def kept_of(checkpoints: Callable[..., Checkpoints], **settings: Any) -> Checkpoints:
    """Checkpoints that fail where anybody looks for a face."""

    def asked(image: torch.Tensor) -> None:
        raise AssertionError("a thing has no face")

    kept = checkpoints(**settings)
    analyzer = replace(kept.keep.analyzer, detector=asked)
    kept.keep = replace(kept.keep, analyzer=analyzer)
    return kept


def test_a_thing_is_scored_by_its_losses_dino(thing, checkpoints, dino) -> None:
    """Against cosines of [CLS] worked out here, of the pictures that were kept."""
    kept, of = kept_of(checkpoints, choose="identity"), thing(**SEEN)
    backbone = load_backbone(model_folder())  # whose pictures are more than noise
    with Trainer.open(of, backbone, dino=dino) as trainer:
        trainer.run(keeping=kept)
        squares = [central(photo, of.recipe.side).image[None] for photo in of.subject.photos]
        photos = [backbone.decode(backbone.encode(square)).clamp(0, 1) for square in squares]
        source = next(trainer.materials.batches.source.each())
        known = F.normalize(torch.cat([dino(photo).look.detach() for photo in photos]))
    own = float(known[0] @ known[1])
    assert len(known) == 2
    for record in kept.records:
        assert record.pictures.keys() == {"both", "identity", "style", "copies"}
        pictures = F.normalize(dino(kept._shelf.pictures(record.step)).look)
        expected = (pictures @ known.T).mean(dim=1) / own
        assert float((1 - expected).abs().min()) > 3e-3, "random weights see little, but that"
        assert record.pictures["identity"] == pytest.approx(expected.tolist(), abs=3e-4)
        assert record.run.keys() == {"obedience", "leakage"} and source.face_mask is not None
    assert "Identity by DINO" in str(kept) and "(best by identity)" in str(kept)


def test_the_thing_is_watched_on_its_photos_and_the_style_has_no_outside(
    thing, checkpoints, make_backbone
) -> None:
    kept, of, backbone = kept_of(checkpoints, keep=1), thing(), make_backbone()
    with Trainer.open(of, backbone) as trainer:
        trainer.run(keeping=kept)
        prompt = "a picture of <ada-1> toy in the <oil-1> style"
        shares = []
        for number, photo in enumerate(trainer.materials.batches.source.each()):
            chance = generator(of.seed, "leaking", number)
            with trainer.loras.shown():
                given = (trainer.backbone, prompt, of.concepts, trainer.vectors, photo, chance)
                shares.append(mean_leakage(look(*given))["ada-1"])
    assert kept.records[0].run["leakage"] == pytest.approx(sum(shares) / len(shares), abs=1e-4)


def test_without_dino_it_is_left_out_and_the_choice_says_so(
    thing, checkpoints, make_backbone
) -> None:
    kept = kept_of(checkpoints)
    with Trainer.open(thing(), make_backbone()) as trainer:
        trainer.run(keeping=kept)
    assert kept.records[0].pictures.keys() == {"both", "style", "copies"}
    assert "no DINO looks at the thing" in str(kept) and "(best by style alone)" in str(kept)
    assert kept.as_dict()["chosen_by"] == "style alone"
    needing = kept_of(checkpoints, choose="identity")
    with (
        Trainer.open(thing(), make_backbone()) as trainer,
        pytest.raises(InputError, match="'identity', which is not measured"),
    ):
        trainer.run(keeping=needing)
