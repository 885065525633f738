"""The adapter: its parts, its names in another model's layout, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from magicapture.adapters.adapter import Adapter
from magicapture.errors import InputError
from magicapture.lora import LoraWeights

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
    names = {"middle_block.1.proj": "mid_block.proj", "out": "conv_out"}
    assert adapter.state_for("unet", names) == {"middle_block.1.proj": WEIGHTS}
    with pytest.raises(InputError, match=r"mid_block\.proj"):
        adapter.state_for("unet", {"out": "conv_out"})


def test_vectors_are_those_of_the_tokens() -> None:
    vectors = Adapter(LORA, TOKENS, "sd1").vectors()
    assert vectors.counts == {"ada": 2}
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
