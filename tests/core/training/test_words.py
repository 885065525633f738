"""Words kept: what a row of the words loss is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.config import Phase, Rates, Weights, WordsSettings
from magicapture.sampling import adapted
from magicapture.tokens import Prompt
from magicapture.training import Stepped, Trainer

PHASE = Phase(
    "words", 6, Rates(tokens=1e-2, unet=1e-1), Weights(source=1, style=0, composed=1, words=1)
)
EDITS = ("with a hat", "on a beach")


def job_of(make_job, kept: str, every: int = 1, phase: Phase = PHASE, **changes):
    words = WordsSettings(kept=kept, every=every, edits=EDITS)
    return make_job(phases=(phase,), words=words, **changes)


def noise_of(backbone, row, text: str, vectors):
    """The model's answer to a row's noised latents under another prompt, outside a training."""
    timestep = torch.tensor([row.timestep])
    noisy = backbone.schedule.add_noise(row.latents, row.epsilon, timestep)
    with torch.no_grad():
        conditioning = backbone.encode_prompts([Prompt(text)], vectors)
        return backbone.predict(noisy, timestep, conditioning)


@pytest.mark.parametrize("kept", ["change", "answer"])
def test_the_target_is_what_the_base_model_says(kept, make_job, backbone):
    with Trainer.open(job_of(make_job, kept), backbone) as trainer:
        trainer.run()
        adapter, chance = trainer.adapter(), torch.Generator().manual_seed(3)
        with trainer._phase(PHASE) as objective:
            rows = trainer.materials.batches.rows(PHASE, chance)
            batch = objective.predict(rows, 0.0)
    ((row, target, prediction),) = [
        one
        for one in zip(rows, batch.target, batch.prediction, strict=True)
        if one[0].task == "words"
    ]
    words = next(edit for edit in EDITS if row.prompt.text.endswith(f", {edit}"))
    own, vectors = row.prompt.text.removesuffix(f", {words}"), adapter.vectors()
    wanted = noise_of(backbone, row, f"a photo of a woman, {words}", vectors)
    with adapted(backbone, adapter):
        torch.testing.assert_close(
            prediction[None], noise_of(backbone, row, row.prompt.text, vectors)
        )
        composed = noise_of(backbone, row, own, vectors)
    if kept == "change":
        assert "<ada-1>" in own and "<oil-1>" in own
        wanted = wanted + composed - noise_of(backbone, row, "a photo of a woman", vectors)
    else:
        assert own == "a photo of a woman"
    torch.testing.assert_close(target[None], wanted)
    assert (batch.target[0] - rows[0].epsilon[0]).abs().max() == 0  # others: their noise


def test_the_base_models_answers_are_kept_from_the_start(make_job, backbone):
    phase = replace(PHASE, weights=Weights(source=0, style=0, words=1))
    events = []
    job = job_of(make_job, "answer", phase=phase)
    with Trainer.open(job, backbone, listener=events.append) as trainer:
        trainer.run()
    steps = [event for event in events if isinstance(event, Stepped)]
    assert [step.losses["words"] for step in steps] == [0.0] * 6


@pytest.mark.slow
def test_it_holds_what_training_would_change(make_job, make_backbone):
    """Without the loss the LoRA changes the class prompt's answer more than with it."""

    def drift(weight: float) -> float:
        weights = Weights(source=1, style=1, composed=1, words=weight)
        job = job_of(make_job, "answer", phase=replace(PHASE, steps=40, weights=weights))
        backbone, events = make_backbone(), []
        with Trainer.open(job, backbone, listener=events.append) as trainer:
            adapter = trainer.run()
            row = trainer.materials.batches.rows(PHASE, torch.Generator().manual_seed(9))[0]
        text = "a photo of a woman, with a hat"
        before = noise_of(backbone, row, text, adapter.vectors())
        with adapted(backbone, adapter):
            return float(
                (noise_of(backbone, row, text, adapter.vectors()) - before).square().mean()
            )

    assert drift(100.0) < 0.5 * drift(0.0)


def test_a_batch_and_one_row_after_another_are_alike(make_job, make_backbone):
    def losses(batching: str) -> list[dict[str, float]]:
        with Trainer.open(
            job_of(make_job, "change", every=2, batching=batching), make_backbone()
        ) as trainer:
            trainer.run()
            return trainer.history

    for one, other in zip(losses("together"), losses("in_turn"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_looking_seldom_counts_as_much(make_job, backbone):
    phase = replace(PHASE, steps=1)
    with Trainer.open(job_of(make_job, "change", every=3, phase=phase), backbone) as trainer:
        chance = torch.Generator().manual_seed(0)
        tasks = [
            [row.task for row in trainer.materials.batches.rows(phase, chance)] for _ in range(300)
        ]
        seen = sum("words" in of for of in tasks)
        assert 75 <= seen <= 125
        with trainer._phase(phase) as objective:
            rows = trainer.materials.batches.rows(
                replace(phase, weights=Weights(source=0, style=0, words=1)), chance
            )
            losses = objective(rows)
    assert float(losses.total.detach()) == pytest.approx(3 * float(losses.by_name["words"]))


def test_the_lora_is_back_also_after_an_error(make_job, backbone):
    with Trainer.open(job_of(make_job, "change"), backbone) as trainer:
        trainer.run()
        with trainer.loras.shown():
            (lora,) = trainer.loras._present.values()
            with pytest.raises(RuntimeError, match="boom"), trainer.loras.off():
                assert lora.scale == 0
                raise RuntimeError("boom")
            assert lora.scale == 1
