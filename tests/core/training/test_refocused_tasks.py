"""Attention Refocusing acts on the tasks it is asked to, and their losses add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magicapture.config import RefocusSettings, Weights
from magicapture.training import Stepped, Trainer


def first_attention_loss(job, backbone, embedder) -> float | None:
    """The unweighted L_attn of the first step, summed over its rows."""
    events = []
    with Trainer.open(job, backbone, embedder=embedder, listener=events.append) as trainer:
        trainer.run()
    return next(e for e in events if isinstance(e, Stepped)).losses.get("attention")


def test_the_loss_is_the_sum_over_the_tasks_asked_for(make_job, make_backbone, embedder, recipe):
    phase = replace(
        recipe.phases[1], steps=1, weights=Weights(source=1, style=1, composed=1, attention=1)
    )

    def loss(*tasks: str) -> float | None:
        refocus = RefocusSettings(factors=(1, 2), tasks=tasks)
        return first_attention_loss(
            make_job(phases=(phase,), refocus=refocus), make_backbone(), embedder
        )

    alone = [loss("source"), loss("style"), loss("composed")]
    assert all(value is not None and value > 0 for value in alone)
    assert loss("source", "style", "composed") == pytest.approx(sum(alone), rel=1e-4)
    assert loss("source", "composed") == pytest.approx(alone[0] + alone[2], rel=1e-4)
    assert loss("prior") is None
