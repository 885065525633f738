"""ComfyUI's networks rehearsed on fake weights, and what the node says before step 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch

TINY = ["tiny", "tiny_xl", "tiny_flux", "tiny_flux1", "tiny_zimage"]
SIDE = 128


def job_for(pack: Any, backbone: Any, **changes: Any) -> Any:
    planning = pack("magicapture.planning")
    changed = pack("magicapture.recipes").changed
    named = pack("magicapture.recipes").with_steps(pack("magicapture.recipes").recipe(), 10)
    settings = {"resolution": SIDE, "refocus.factors": (1, 2), **changes}
    return planning.noise_job(changed(named, settings), SIDE).fitted(backbone.family)


@pytest.mark.parametrize("name", TINY)
def test_a_step_is_rehearsed_and_leaves_the_models_as_they_were(name, request, pack, executor):
    tiny = request.getfixturevalue(name)
    before = {n: dict(of.named_parameters()) for n, of in tiny.networks.items()}
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    rehearse = pack("magicapture.planning.rehearsal").rehearse
    with backbone.training(None):
        plain = rehearse(job_for(pack, backbone), backbone)
        saved = rehearse(job_for(pack, backbone, checkpointing=True), backbone)
    assert plain.phases[-1].flops > 0 and plain.weights > 0
    assert saved.phases[-1].activations < plain.phases[-1].activations
    assert saved.phases[-1].flops > plain.phases[-1].flops
    for network, of in tiny.networks.items():
        after = dict(of.named_parameters())
        assert all(after[n] is tensor for n, tensor in before[network].items())


def test_the_node_says_what_it_needs_and_then_what_was_measured(pack, tiny, caplog):
    """Under the node and in the log; too little memory is said, and stops nothing."""
    planning, monitor = pack("magicapture.planning"), pack("nodes._monitor")
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    job = job_for(pack, backbone)
    caplog.set_level("INFO")
    shown = monitor.Monitor(None, job)
    shown.plan(backbone, None)
    assert shown.needs.startswith("Training needs about ") and shown.needs in caplog.text
    assert "this computer has" in shown.needs and not shown.warnings
    training = pack("magicapture.training")
    with torch.inference_mode(False):
        for step in range(1, 11):
            shown(training.Stepped(step, 100, "tokens", {"source": 1.0}, 1.0, 1.0, 0.5))
    assert shown.needs.startswith("Measured over 10 steps of tokens: 0.50 s a step")
    assert planning.Records().get(shown._watch.plan.record.key).seconds == {"tokens": 0.5}


def test_the_node_warns_where_there_is_too_little(pack, tiny, monkeypatch):
    plan, monitor = pack("magicapture.planning.plan"), pack("nodes._monitor")
    found = plan.room(torch.device("cpu"))
    small = type(found)(found.what, found.name, found.total // 10**4, found.held, found.reach)
    monkeypatch.setattr(plan, "room", lambda device: small)
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    shown = monitor.Monitor(None, job_for(pack, backbone))
    shown.plan(backbone, None)
    assert "more than this computer has. It may stop half-way" in shown.warnings[0]
