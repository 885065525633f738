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
