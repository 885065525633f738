"""The adapter: its parts, its names in another model's layout, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from magicapture.adapters.adapter import MAX_STRENGTH, Adapter, check_strength
from magicapture.errors import InputError
from magicapture.lora import LoraWeights
from magicapture.parts import Part
from magicapture.recipes import recipe
from magicapture.tokens import Concept

WEIGHTS = LoraWeights(torch.ones(1, 2), torch.ones(3, 1), 1.0)
LORA = {"unet.mid_block.proj": WEIGHTS, "clip_l.text_model.encoder.fc1": WEIGHTS}
TOKENS = {"ada": {"clip_l": torch.ones(2, 4)}}


def test_a_part_has_diffusers_names() -> None:
    adapter = Adapter(LORA, TOKENS, "sd1")
    assert list(adapter.part("unet")) == ["mid_block.proj"]
    assert list(adapter.part("clip_l")) == ["text_model.encoder.fc1"]
    assert adapter.part("clip_g") == {}


def test_a_part_is_renamed_for_a_model() -> None:
    adapter = Adapter(LORA, TOKENS, "sd1")
    model = nn.ModuleDict({"own": nn.Linear(2, 3), "out": nn.Linear(2, 3)})
    parts = {"own": (Part("mid_block.proj"),), "out": (Part("conv_out"),)}
    assert adapter.state_for("unet", model, parts) == {"own": WEIGHTS}
    with pytest.raises(InputError, match=r"mid_block\.proj"):
        adapter.state_for("unet", model, {"out": (Part("conv_out"),)})


def test_a_part_is_merged_for_a_model_with_a_fused_layer() -> None:
    """The file has the lower rows alone; the model's other rows stay as they are."""
    parts = {"own": (Part("to_k", slice(0, 2)), Part("mid_block.proj", slice(2, 5)))}
    model = nn.ModuleDict({"own": nn.Linear(2, 6)})
    state = Adapter(LORA, TOKENS, "sd1").state_for("unet", model, parts)
    assert state["own"].up.flatten().tolist() == [0, 0, 1, 1, 1, 0]


def test_vectors_are_those_of_the_tokens() -> None:
    vectors = Adapter(LORA, TOKENS, "sd1").vectors()
    assert vectors.written("clip_l") == {"ada": 2}
    assert torch.equal(vectors.get("ada", "clip_l"), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("lora", "tokens", "family", "message"),
    [
        (LORA, TOKENS, "flux", "flux"),
        ({"clip_g.a": WEIGHTS}, {}, "sd1", "clip_g.a"),
        ({}, TOKENS, "sdxl", "needs clip_l and clip_g"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    lora: dict[str, LoraWeights], tokens: dict[str, dict], family: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Adapter(lora, tokens, family)


def test_the_prompt_is_a_sentence_of_its_recipe_or_one_of_ours() -> None:
    concepts = (Concept("ada", "subject", "woman"), Concept("film", "style"))
    known = Adapter({}, {}, "sd1", recipe("paper"), concepts)
    assert known.prompt() == "a photo of <ada> woman in the <film> style"
    assert known.prompt("subject", extra=" smiling ").endswith("<ada> woman, smiling")
    unknown = Adapter({}, {}, "sd1", concepts=concepts)
    second = unknown.prompt("composed", sentence=1)
    assert second == "a portrait of <ada> woman in the <film> style"
    with pytest.raises(InputError, match="one subject and one style"):
        Adapter({}, {}, "sd1").prompt()


def test_a_base_model_of_another_family_is_named() -> None:
    adapter = Adapter(LORA, TOKENS, "sd1")
    adapter.check_family("sd1")
    with pytest.raises(
        InputError, match=r"is for Stable Diffusion 1\.x and .* Stable Diffusion XL"
    ):
        adapter.check_family("sdxl")


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1e30, 10.1])
def test_a_strength_that_is_no_sane_number_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match="strength"):
        check_strength(strength)
    for sane in (0.0, 1.0, -MAX_STRENGTH, MAX_STRENGTH):
        check_strength(sane)
