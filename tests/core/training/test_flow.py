"""A run whose process is a flow: levels between timesteps, drawn, limited and resumed."""

from __future__ import annotations

import pytest
import torch

from magicapture.config import IdentitySettings, LabelSettings
from magicapture.sampling import SamplingSettings
from magicapture.schedule import FlowLevels, Schedule
from magicapture.training import Stepped, Trainer

IDENTITY = IdentitySettings(min_snr=0.383 / 16)  # sigma < 0.618 at this side


def flow(backbone, **changes):
    backbone.schedule = Schedule(FlowLevels(**changes), "flow")
    return backbone


def test_all_losses_train_on_a_flow_and_its_identity_ends_at_sigma(
    make_job, make_backbone, embedder
):
    events = []
    job = make_job(identity=IDENTITY, weighting="v", pseudo_label="face_laid_in")
    small = SamplingSettings("euler_a", steps=2, width=64, height=64)
    with Trainer.open(
        job, flow(make_backbone()), embedder=embedder, listener=events.append
    ) as trainer:
        adapter = trainer.run(preview_every=4, preview=small)
        drawn = trainer.materials.batches
        phase, chance = job.recipe.phases[-1], torch.Generator().manual_seed(1)
        levels = [drawn.rows(phase, chance)[0].timestep for _ in range(50)]
    steps = [event for event in events if isinstance(event, Stepped)]
    assert len(steps) == job.recipe.steps
    assert any("identity" in step.losses for step in steps)
    assert all(step.grad_norm > 0 for step in steps)
    assert all(0 < level < 1 for level in levels) and len(set(levels)) == 50
    assert adapter.info["prediction"] == "flow"


def test_a_pass_of_its_own_and_a_hidden_face_keep_to_their_limits(
    make_job, make_backbone, embedder
):
    labels = LabelSettings(nearness=10, max_snr=0.383 / 16)
    own = IdentitySettings(min_snr=IDENTITY.min_snr, separate_pass=True)
    job = make_job(identity=own, pseudo_label="face_laid_in", labels=labels)
    with Trainer.open(job, flow(make_backbone(), shift=2.0), embedder=embedder) as trainer:
        batches, chance = trainer.materials.batches, torch.Generator().manual_seed(1)
        rows = [row for _ in range(40) for row in batches.rows(job.recipe.phases[-1], chance)]
    apart = [row.timestep for row in rows if not row.reconstruct]
    assert len(apart) == 40 and 0.5 < max(apart) < 0.619
    composed = [row for row in rows if row.reconstruct and row.task == "composed"]
    hidden = [float((row.supervised * row.face).max()) < 0.3 for row in composed]
    assert hidden == [row.timestep < 0.618 for row in composed] and len(set(hidden)) == 2


def test_a_flow_goes_on_as_if_it_had_never_stopped(make_job, make_backbone, tmp_path):
    job = make_job(phases=make_job().recipe.phases[:1])

    def run(folder, stop_at=None):
        def listen(event):
            if isinstance(event, Stepped) and event.step == stop_at:
                raise KeyboardInterrupt

        with Trainer.open(
            job, flow(make_backbone()), state_folder=folder, listener=listen
        ) as trainer:
            return trainer.run()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", stop_at=1)
    resumed = run(tmp_path / "half")
    for token, vectors in whole.tokens.items():
        assert torch.equal(vectors["clip_l"], resumed.tokens[token]["clip_l"])
