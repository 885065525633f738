"""Weights that would turn pictures black are refused by file and layer; those in use pass."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicapture.adapters import load_adapter, read_embedding
from magicapture.errors import InputError

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def write(path: Path, **changes: torch.Tensor) -> Path:
    """A LoRA of one layer, rank 2 and alpha 2, with other tensors than ones where given."""
    tensors = {
        "lora_down.weight": torch.ones(2, 768),
        "lora_up.weight": torch.ones(8, 2),
        "alpha": torch.tensor(2.0),
        **{name.replace("_weight", ".weight"): tensor for name, tensor in changes.items()},
    }
    save_file({f"{KEY}.{name}": tensor for name, tensor in tensors.items()}, path)
    return path


def with_one(shape: tuple[int, int], value: float) -> torch.Tensor:
    tensor = torch.zeros(shape)
    tensor[1, 1] = value
    return tensor


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found(tmp_path: Path, value: float) -> None:
    for name, shape in (("lora_down", (2, 768)), ("lora_up", (8, 2))):
        path = write(tmp_path / "a.safetensors", **{f"{name}_weight": with_one(shape, value)})
        with pytest.raises(InputError, match=rf"a\.safetensors holds NaN .* {name} of {LAYER}"):
            load_adapter(path)
    path = write(tmp_path / "a.safetensors", alpha=torch.tensor(value))
    with pytest.raises(InputError, match=rf"too large in {LAYER}.*alpha of"):
        load_adapter(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": torch.tensor(1e30)},
        {"alpha": torch.tensor(-1e30)},
        {"lora_up_weight": with_one((8, 2), 1e30)},
        {"lora_down_weight": torch.full((2, 768), 1e300, dtype=torch.float64)},
        {"alpha": torch.tensor(2 * 65504 / (2 * 768) * 1.001)},  # alpha / rank * 2 * 768
    ],
)
def test_numbers_that_float16_cannot_hold_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(InputError, match=LAYER):
        load_adapter(write(tmp_path / "a.safetensors", **changes))


def test_what_float16_just_holds_passes(tmp_path: Path) -> None:
    alpha = torch.tensor(2 * 65504 / (2 * 768) * 0.999)
    (weights,) = load_adapter(write(tmp_path / "a.safetensors", alpha=alpha)).lora.values()
    out = weights.alpha / weights.rank * (weights.up @ (weights.down @ torch.ones(768)))
    assert out.half().isfinite().all() and out.max() > 65000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_down_weight": torch.ones(0, 768), "lora_up_weight": torch.ones(8, 0)},
            rf"layer {LAYER}.*\(0, 768\).*none of them 0",
        ),
        ({"lora_down_weight": torch.ones(3, 768)}, rf"layer {LAYER}.*\(3, 768\)"),
        ({"lora_up_weight": torch.ones(8, 2, dtype=torch.int8)}, "lora_up"),
        ({"lora_up_weight": torch.ones(8, 2, dtype=torch.complex64)}, "lora_up"),
        ({"lora_up_weight": torch.ones(16)}, "lora_up"),
    ],
)
def test_shapes_and_types_that_are_none_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_adapter(write(tmp_path / "a.safetensors", **changes))


def test_a_layer_given_twice_is_refused(tmp_path: Path) -> None:
    twice = {
        f"{name}.{end}": torch.ones(shape)
        for name in (KEY, LAYER)
        for end, shape in (("lora_down.weight", (2, 768)), ("lora_up.weight", (8, 2)))
    }
    save_file(twice, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="one lora_down / lora_up pair"):
        load_adapter(tmp_path / "a.safetensors")


def test_a_whole_number_is_an_alpha(tmp_path: Path) -> None:
    (weights,) = load_adapter(
        write(tmp_path / "a.safetensors", alpha=torch.tensor(4))
    ).lora.values()
    assert weights.alpha == 4.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38, -1e38, 7e4])
def test_embeddings_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "ada.safetensors"
    save_file({"emb_params": with_one((2, 768), value)}, path)
    for read in (read_embedding, load_adapter):
        with pytest.raises(InputError, match=r"ada\.safetensors holds an embedding with NaN"):
            read(path)
