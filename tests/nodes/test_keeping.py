"""Keep Checkpoints and Take Checkpoint as the executor runs them, on a tiny Stable Diffusion."""

from __future__ import annotations

import json

import pytest
import torch

SIDE = 64
SETTINGS = {
    "keep": 2,
    "keep_every": 0,
    "keep_seeds": 1,
    "choose": "last",
    "stop_early": False,
    "keep_guidance": 0.0,
    "clip_file": "none",
}


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def concepts(nodes, pack):
    """A person and a style of three noisy pictures each."""
    none, face = pack("nodes.references").NO_FOLDER, torch.zeros(3, SIDE, SIDE)
    face[:, 16:48, 16:48] = 1
    made = []
    for seed, (role, name) in enumerate((("subject", "ada-1"), ("style", "oil-1"))):
        images = torch.rand(3, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))
        photos = nodes.LoadPhotoSet.execute([none], [images], [face], [""])[0]
        made.append(nodes.DefineConcept.execute(photos, role, name, "person", 1)[0])
    return made


def train(nodes, tiny, concepts, seed, **more):
    recipe = nodes.ChooseRecipe.execute("magicapture", 4, 2, SIDE, 1.0, False)[0]
    inputs = (tiny.model, tiny.clip, tiny.vae, *concepts, seed, 0, True)
    return nodes.Train.execute(*inputs, recipe=recipe, **more).args


def test_the_marked_step_comes_out_and_any_can_be_taken(nodes, tiny, concepts):
    plain, curves, _, _, nothing = train(nodes, tiny, concepts, 71)
    assert nothing is None
    keep = nodes.KeepCheckpoints.execute(**SETTINGS)[0]
    adapter, wide, _, report, kept = train(nodes, tiny, concepts, 72, keep=keep)
    assert wide.shape[2] > curves.shape[2], "the scores stand beside the losses"
    assert [one.step for one in kept.records] == [3, 4]
    assert adapter.info["steps"] == str(kept.best.step)
    assert "Left out: identity: there is no face recognition model." in report
    taken, grid, step, text, data = nodes.TakeCheckpoint.execute(kept, 3).args
    assert (step, taken.info["steps"]) == (3, "3") and text.startswith("Taken: step 3.")
    assert grid.shape[0] == 1 and grid.shape[3] == 3
    assert json.loads(data)["best"] == kept.best.step
    assert nodes.TakeCheckpoint.execute(kept, 0)[2] == kept.best.step
    with pytest.raises(ValueError, match="Take Checkpoint: Step 2 is not kept; expected one of 3"):
        nodes.TakeCheckpoint.execute(kept, 2)
    assert torch.isfinite(grid).all() and plain.info["steps"] == "4"


def test_training_is_the_same_with_and_without(nodes, tiny, concepts):
    without = train(nodes, tiny, concepts, 73)[0]
    keep = nodes.KeepCheckpoints.execute(**SETTINGS)[0]
    kept = nodes.Train.execute(
        *(tiny.model, tiny.clip, tiny.vae, *concepts, 73, 0, False),
        recipe=nodes.ChooseRecipe.execute("magicapture", 4, 2, SIDE, 1.0, False)[0],
        keep=keep,
    )[0]
    for name, weights in without.lora.items():
        assert torch.equal(weights.up, kept.lora[name].up), name
    for name, of in without.tokens.items():
        assert torch.equal(of["clip_l"], kept.tokens[name]["clip_l"])


def test_what_is_wrong_is_said(nodes):
    check = nodes.KeepCheckpoints.validate_inputs
    assert check("none", 0.0) is True and check("none", 2.5) is True
    assert "expected 0, or 1 to 30" in check("none", 0.5)
    assert "no CLIP model 'x.safetensors'" in check("x.safetensors", 0.0)
    with pytest.raises(ValueError, match="connect Keep Checkpoints to the input 'keep'"):
        nodes.TakeCheckpoint.execute(None, 0)
