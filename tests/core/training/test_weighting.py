"""Noise levels count as the recipe's weighting says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.config import Weights
from magicapture.losses.equations import timestep_weights
from magicapture.training import Stepped, Trainer


def test_a_step_counts_its_noise_level(make_job, make_backbone, recipe):
    weights = Weights(source=1, style=0)
    phase = replace(recipe.phases[0], steps=1, weights=weights, share=0.001)

    def loss(weighting: str) -> float:
        events, backbone = [], make_backbone()
        job = make_job(phases=(phase,), weighting=weighting)
        with Trainer.open(job, backbone, listener=events.append) as trainer:
            trainer.run()
        return next(e for e in events if isinstance(e, Stepped)).losses["source"]

    schedule = make_backbone().schedule
    for weighting in ("min_snr", "v"):
        expected = timestep_weights(schedule, torch.tensor([0]), weighting) * loss("none")
        assert loss(weighting) == pytest.approx(float(expected), rel=1e-4)
