"""PEFT's form: read back with every rank and alpha, and taken by PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture.adapters import load_adapter, save_peft
from magicapture.adapters.adapter import Adapter
from magicapture.errors import InputError, StorageError
from magicapture.lora import applied


def test_every_bit_comes_back(
    make_adapter: Callable[..., Adapter], same: Callable[[Adapter, Adapter], None], tmp_path: Path
) -> None:
    adapter = make_adapter("all_linear", alphas=(1.0, 0.25), tokens={})
    assert [folder.name for folder in save_peft(adapter, tmp_path)] == ["unet", "text_encoder"]
    same(load_adapter(tmp_path), adapter)
    assert load_adapter(tmp_path / "unet").part("unet").keys() == adapter.part("unet").keys()
    assert load_adapter(tmp_path / "unet").part("clip_l") == {}


def test_peft_makes_the_same_of_it(
    make_adapter: Callable[..., Adapter], tmp_path: Path, tiny: Any, outputs: Callable[..., Any]
) -> None:
    from peft import PeftModel

    adapter = make_adapter(alphas=(1.0, 0.25))
    unet, encoder = tiny.unet(), tiny.text_encoder()
    names = {name.removeprefix("text_model."): w for name, w in adapter.part("clip_l").items()}
    with applied(unet, adapter.part("unet")), applied(encoder, names):
        ours = outputs(unet, encoder)
    folders = save_peft(adapter, tmp_path)
    loaded = [
        PeftModel.from_pretrained(model, folder)
        for model, folder in zip((unet, encoder), folders, strict=True)
    ]
    for mine, theirs in zip(ours, outputs(*loaded), strict=True):
        assert (mine - theirs).abs().max() < 1e-5


def test_a_foreign_folder_is_read_with_its_alpha(tmp_path: Path) -> None:
    layer = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{layer}.lora_A.weight": torch.ones(4, 768)}
    save_file({**tensors, f"{layer}.lora_B.weight": torch.ones(8, 4)}, tmp_path / "w")
    (tmp_path / "w").rename(tmp_path / "adapter_model.safetensors")
    for config, alpha in (
        ({"lora_alpha": 2}, 2.0),
        ({"lora_alpha": 2, "alpha_pattern": {"o_k": 9, "to_k": 6}}, 6.0),
        ({"lora_alpha": 2, "use_rslora": True}, 4.0),  # alpha / sqrt(r) = (alpha sqrt(r)) / r
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
        (weights,) = load_adapter(tmp_path).lora.values()
        assert weights.alpha == alpha


def test_nothing_that_is_there_is_replaced(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(InputError, match="there already"):
        save_peft(adapter, tmp_path)
    assert not (tmp_path / "unet").exists()


def test_what_cannot_be_written_or_read_is_refused(
    make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no LoRA"):
        save_peft(make_adapter(lora={}), tmp_path)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_adapter(tmp_path)
    (folder, _) = save_peft(make_adapter(), tmp_path)
    config = folder / "adapter_config.json"
    config.write_text('{"peft_type": "LOHA"}')
    with pytest.raises(InputError, match="LOHA"):
        load_adapter(tmp_path)
    config.write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        load_adapter(tmp_path)
    assert load_file(folder / "adapter_model.safetensors")
