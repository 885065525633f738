"""The gradients of a step, also where some of its rows cost nothing."""

from __future__ import annotations

import pytest

from magicapture.config import IdentitySettings, Phase, Rates, Weights
from magicapture.training import Stepped, Trainer


@pytest.mark.parametrize("batching", ["together", "in_turn", "one_task"])
@pytest.mark.parametrize("min_snr", [1e9, 0.383 / 16])
def test_a_step_in_which_no_loss_acts_is_no_error(make_job, backbone, embedder, batching, min_snr):
    weights = Weights(source=0, style=0, identity=1)
    job = make_job(
        phases=(Phase("face", 12, Rates(unet=1e-3), weights),),
        identity=IdentitySettings(min_snr=min_snr),
        batching=batching,
    )
    events = []
    with Trainer.open(job, backbone, embedder=embedder, listener=events.append) as trainer:
        trainer.run()
    steps = [event for event in events if isinstance(event, Stepped)]
    assert len(steps) == 12
    acted = [bool(step.losses) for step in steps]
    assert not all(acted) and any(acted) == (min_snr < 1)
    assert all((step.grad_norm > 0) == bool(step.losses) for step in steps)
