"""The empty prompt kept: guidance leads away from the base model, not from the person."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.config import Phase, Rates, UnconditionalSettings, Weights
from magicapture.families import FAMILIES
from magicapture.recipes import DEFAULT, changed, fitted, recipe, with_weights
from magicapture.sampling import adapted
from magicapture.tokens import Prompt, TokenVectors
from magicapture.training import Trainer

PHASE = Phase(
    "both", 6, Rates(tokens=1e-2, unet=1e-1), Weights(source=1, composed=1, unconditional=1)
)


def answer_of(backbone, row):
    """The model's answer to a row's noised latents under the empty prompt."""
    timestep = torch.tensor([row.timestep])
    noisy = backbone.schedule.add_noise(row.latents, row.epsilon, timestep)
    with torch.no_grad():
        conditioning = backbone.encode_prompts([Prompt("")], TokenVectors({}))
        return backbone.predict(noisy, timestep, conditioning)


def job_of(make_job, phase: Phase = PHASE, every: int = 1, **changes):
    return make_job(phases=(phase,), unconditional=UnconditionalSettings("all", every), **changes)


def test_the_loss_is_the_distance_from_the_base_models_answer(make_job, backbone):
    with Trainer.open(job_of(make_job), backbone) as trainer:
        adapter = trainer.run()
        with trainer._phase(PHASE) as objective:
            rows = trainer.materials.batches.rows(PHASE, torch.Generator().manual_seed(3))
            losses = objective(rows)
    (row,) = (row for row in rows if row.task == "unconditional")
    composed = next(row for row in rows if row.task == "composed")
    assert row.prompt == Prompt("") and torch.equal(row.latents, composed.latents)
    base = answer_of(backbone, row)
    with adapted(backbone, adapter):
        wanted = (answer_of(backbone, row) - base).square().mean()
    assert wanted > 0
    torch.testing.assert_close(losses.by_name["unconditional"], wanted)


def test_it_holds_what_training_would_change(make_job, make_backbone):
    def drift(weight: float) -> float:
        weights = Weights(source=1, style=1, composed=1, unconditional=weight)
        backbone = make_backbone()
        phase = replace(PHASE, steps=40, weights=weights)
        with Trainer.open(job_of(make_job, phase), backbone) as trainer:
            adapter = trainer.run()
            row = trainer.materials.batches.rows(PHASE, torch.Generator().manual_seed(9))[0]
        before = answer_of(backbone, row)
        with adapted(backbone, adapter):
            return float((answer_of(backbone, row) - before).square().mean())

    assert drift(100.0) < 0.5 * drift(0.0)


def test_looking_seldom_counts_as_much(make_job, backbone):
    phase = replace(PHASE, steps=1)
    with Trainer.open(job_of(make_job, phase, every=3), backbone) as trainer:
        trainer.run()
        chance = torch.Generator().manual_seed(0)
        batches = trainer.materials.batches
        seen = sum(
            "unconditional" in {row.task for row in batches.rows(phase, chance)} for _ in range(300)
        )
        assert 75 <= seen <= 125
        alone = replace(phase, weights=Weights(source=0, style=0, unconditional=1))
        with trainer._phase(phase) as objective:
            losses = objective(batches.rows(alone, chance))
    assert float(losses.total.detach()) == pytest.approx(3 * float(losses.by_name["unconditional"]))


def test_distilled_guidance_has_no_empty_prompt_to_keep():
    kept = with_weights(recipe(DEFAULT), unconditional=2)
    everywhere = changed(kept, {"unconditional.networks": "all"})
    for family, facts in FAMILIES.items():
        assert fitted(everywhere, family).uses("unconditional") is not facts.distilled
        joint = facts.network == "transformer" and not facts.distilled
        assert fitted(kept, family).uses("unconditional") is joint


def test_a_recipe_without_it_is_told_apart_as_before():
    plain = with_weights(recipe(DEFAULT), unconditional=0)
    told = plain.settings()
    assert "unconditional" not in told
    assert all("unconditional" not in phase["weights"] for phase in told["phases"])
    assert "unconditional" in with_weights(plain, unconditional=1).settings()
