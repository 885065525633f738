"""diffusers' form: read back, and taken by `load_lora_weights` and `load_textual_inversion`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.adapters import load_adapter, save_adapter, save_diffusers
from magicapture.adapters.adapter import Adapter
from magicapture.errors import InputError
from magicapture.lora import applied


def test_the_update_comes_back_with_alpha_folded_in(adapter: Adapter, tmp_path: Path) -> None:
    files = save_diffusers(adapter, tmp_path, "portrait")
    loaded = load_adapter(files.lora, [tmp_path])
    assert loaded.lora.keys() == adapter.lora.keys() and loaded.recipe == adapter.recipe
    for key, weights in loaded.lora.items():
        assert weights.alpha == weights.rank
        assert torch.allclose(weights.delta(), adapter.lora[key].delta(), rtol=1e-5, atol=1e-6)
    for name, vectors in loaded.tokens.items():
        assert torch.equal(vectors["clip_l"], adapter.tokens[name]["clip_l"])


def test_a_pipeline_makes_the_same_of_it(
    adapter: Adapter, tmp_path: Path, pipeline: Any, outputs: Callable[..., Any]
) -> None:
    with applied(pipeline.unet, adapter.part("unet")):
        ours, plain = outputs(pipeline.unet, pipeline.text_encoder)
    pipeline.load_lora_weights(save_diffusers(adapter, tmp_path, "portrait").lora)
    theirs, text = outputs(pipeline.unet, pipeline.text_encoder)
    assert (ours - theirs).abs().max() < 1e-5
    assert (text - plain).abs().max() > 1e-2


@pytest.mark.parametrize("form", ["ours", "diffusers"])
def test_a_pipeline_takes_the_embeddings(
    adapter: Adapter, tmp_path: Path, pipeline: Any, form: str
) -> None:
    if form == "ours":
        path = save_adapter(adapter, tmp_path, tmp_path, "portrait").embeddings[0]
        pipeline.load_textual_inversion(path, token="<ada>")
    else:
        pipeline.load_textual_inversion(save_diffusers(adapter, tmp_path, "p").embeddings[0])
    prompt = pipeline.maybe_convert_prompt("a photo of <ada>", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt).input_ids[4:-1]
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], adapter.tokens["ada"]["clip_l"])


def test_foreign_files_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "film.safetensors").write_bytes(b"foreign")
    with pytest.raises(InputError, match=r"film\.safetensors"):
        save_diffusers(adapter, tmp_path, "portrait")
    assert [path.name for path in tmp_path.iterdir()] == ["film.safetensors"]
