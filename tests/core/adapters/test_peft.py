"""PEFT's form: what its own `save_pretrained` writes is read, with every rank and alpha."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file

from magicapture.adapters import load_adapter
from magicapture.errors import InputError, StorageError

LAYER = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def write(folder: Path, config: object, **tensors: torch.Tensor) -> Path:
    """A folder in PEFT's form with one layer of rank 4, and these tensors of it besides."""
    folder.mkdir(exist_ok=True)
    pair = {"lora_A.weight": torch.ones(4, 768), "lora_B.weight": torch.ones(8, 4), **tensors}
    save_file({f"{LAYER}.{n}": t for n, t in pair.items()}, folder / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_what_peft_saves_is_read(tmp_path: Path, foreign: SimpleNamespace) -> None:
    wrapped = {}
    for part, model in foreign.models().items():
        first = foreign.TARGETS[part][0]
        config = foreign.config_for(part, rank_pattern={first: 3}, alpha_pattern={first: 5.0})
        wrapped[part] = foreign.randomised(get_peft_model(model, config))
        wrapped[part].save_pretrained(tmp_path / part)
    adapter = load_adapter(tmp_path)
    assert adapter.family == "sd1"
    assert {(of.rank, of.alpha) for of in adapter.lora.values()} == {(2, 1.0), (3, 5.0)}
    assert load_adapter(tmp_path / "unet").part("unet").keys() == adapter.part("unet").keys()
    assert load_adapter(tmp_path / "unet").part("clip_l") == {}
    theirs = foreign.put_out(*wrapped.values())
    for mine, own in zip(foreign.drawn_with(adapter), theirs, strict=True):
        assert (mine - own).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"lora_alpha": 2}, 2.0),
        ({"lora_alpha": 2, "alpha_pattern": {"o_k": 9, "to_k": 6}}, 6.0),
        ({"lora_alpha": 2, "use_rslora": True}, 4.0),  # alpha / sqrt(r) = (alpha sqrt(r)) / r
    ],
)
def test_a_foreign_folder_is_read_with_its_alpha(
    tmp_path: Path, config: dict[str, object], alpha: float
) -> None:
    (weights,) = load_adapter(write(tmp_path, {"peft_type": "LORA", **config})).lora.values()
    assert weights.alpha == alpha


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("{", StorageError),
        ("[1]", StorageError),
        ("[" * 100_000, StorageError),
        ({"peft_type": "LORA", "lora_alpha": "two"}, StorageError),
        ({"peft_type": "LORA", "lora_alpha": [2]}, StorageError),
        ({"peft_type": "LORA", "alpha_pattern": ["to_k"]}, StorageError),
        ({"peft_type": "LORA", "alpha_pattern": {"to_(k": 2}}, StorageError),
        ({"peft_type": "LORA", "lora_alpha": 1e30}, InputError),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', InputError),
        ({"peft_type": "LOHA"}, InputError),
    ],
)
def test_a_config_that_cannot_be_used_is_named(
    tmp_path: Path, config: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=str(tmp_path)):
        load_adapter(write(tmp_path, config))


def test_what_is_no_lora_of_pefts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_adapter(tmp_path)
    folder = write(tmp_path, {"peft_type": "LORA"})
    with pytest.raises(InputError, match="the folder"):
        load_adapter(folder / "adapter_model.safetensors")
    magnitude = {"lora_magnitude_vector.weight": torch.ones(8)}
    with pytest.raises(InputError, match="is a DoRA"):
        load_adapter(write(tmp_path, {"peft_type": "LORA", "use_dora": True}, **magnitude))
