"""diffusers' form: what its own `save_lora_weights` writes is read; and it takes our embeddings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import inject_adapter_in_model
from peft.utils import get_peft_model_state_dict

from magicapture.adapters import load_adapter, save_adapter
from magicapture.adapters.adapter import Adapter


@pytest.mark.parametrize("told", [False, True])
def test_what_diffusers_saves_is_read(tmp_path: Path, foreign: SimpleNamespace, told: bool) -> None:
    """Its keys have no alpha: it stands in the metadata of newer files, else it is the rank."""
    parts, layers, configs = foreign.models(), {}, {}
    for part, model in parts.items():
        config = foreign.config_for(part, lora_alpha=1 if told else 2)
        inject_adapter_in_model(config, model)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(foreign.randomised(model))
        configs[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers, **(configs if told else {}))
    adapter = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert adapter.family == "sd1"
    theirs = foreign.put_out(*parts.values())
    for mine, own in zip(foreign.drawn_with(adapter), theirs, strict=True):
        assert (mine - own).abs().max() < 1e-5


def test_a_pipeline_takes_the_embeddings(adapter: Adapter, tmp_path: Path, pipeline: Any) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").embeddings[0]
    pipeline.load_textual_inversion(path, token="<ada>")
    prompt = pipeline.maybe_convert_prompt("a photo of <ada>", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt).input_ids[4:-1]
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], adapter.tokens["ada"]["clip_l"])
