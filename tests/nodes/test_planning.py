"""ComfyUI's networks rehearsed on fake weights, and what the node says before step 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

TINY = ["tiny", "tiny_xl", "tiny_flux", "tiny_flux1", "tiny_zimage"]
SIDE = 128


def job_for(pack: Any, backbone: Any, first: int = 0, **changes: Any) -> Any:
    """Of pictures of noise; first: its first phase."""
    recipes = pack("magicapture.recipes")
    settings = {"resolution": SIDE, "refocus.factors": (1, 2), "variants": 1, **changes}
    chosen = recipes.changed(recipes.with_steps(recipes.recipe(), 10), settings)
    chosen = replace(chosen, phases=chosen.phases[first:])
    return pack("magicapture.planning").noise_job(chosen, SIDE).fitted(backbone.family)


def rehearsed(pack: Any, backbone: Any, **changes: Any) -> Any:
    rehearse = pack("magicapture.planning.rehearsal").rehearse
    with backbone.training(None):
        return rehearse(job_for(pack, backbone, first=1, **changes), backbone)


@pytest.mark.parametrize("name", TINY)
def test_a_step_is_rehearsed_and_leaves_the_models_as_they_were(name, request, pack, executor):
    tiny = request.getfixturevalue(name)
    before = {n: dict(of.named_parameters()) for n, of in tiny.networks.items()}
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    (step,) = rehearsed(pack, backbone, checkpointing=True).phases
    assert step.flops > 0 and step.activations > 0 and step.trained > 0
    for network, of in tiny.networks.items():
        after = dict(of.named_parameters())
        assert all(after[n] is tensor for n, tensor in before[network].items())


def test_checkpoints_save_memory_and_compute_twice(pack, tiny, executor):
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    plain, saved = (rehearsed(pack, backbone, checkpointing=on).phases[0] for on in (False, True))
    assert saved.activations < plain.activations and saved.flops > plain.flops


def test_the_node_says_what_it_needs_and_then_what_was_measured(pack, tiny, caplog):
    """Under the node and in the log; too little memory is said, and stops nothing."""
    planning, monitor = pack("magicapture.planning"), pack("nodes._monitor")
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    job = job_for(pack, backbone, first=1)
    caplog.set_level("INFO")
    shown = monitor.Monitor(None, job)
    shown.plan(backbone, None)
    assert shown.needs.startswith("Training needs about ") and shown.needs in caplog.text
    assert "this computer has" in shown.needs and not shown.warnings
    training = pack("magicapture.training")
    with torch.inference_mode(False):
        for step in range(1, 11):
            shown(training.Stepped(step, 100, "tokens and LoRA", {"source": 1.0}, 1.0, 1.0, 0.5))
    assert shown.needs.startswith("Measured over 10 steps of tokens and LoRA: 0.50 s a step")
    assert planning.Records().get(shown._watch.plan.record.key).seconds == {"tokens and LoRA": 0.5}


def test_the_node_warns_where_there_is_too_little(pack, tiny, monkeypatch):
    plan, monitor = pack("magicapture.planning.plan"), pack("nodes._monitor")
    found = plan.room(torch.device("cpu"))
    least = found.total // 10**4
    small = type(found)(found.what, found.name, least, found.held, least)
    monkeypatch.setattr(plan, "room", lambda device: small)
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    shown = monitor.Monitor(None, job_for(pack, backbone, first=1))
    shown.plan(backbone, None)
    assert "more than this computer has. It may stop half-way" in shown.warnings[0]
