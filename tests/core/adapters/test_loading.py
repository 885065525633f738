"""Loading: other programs' files, and files that are damaged, missing or of another kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magicapture.adapters import load_adapter, read_info, save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.errors import InputError, MagiCaptureError, StorageError

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def lora_of_width(width: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{KEY}.lora_down.weight": torch.randn(rank, width),
        f"{KEY}.lora_up.weight": torch.randn(8, rank),
    }


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_a_foreign_lora_tells_its_family_by_the_text_width(
    tmp_path: Path, width: int, family: str
) -> None:
    tensors = lora_of_width(width)
    save_file(tensors, tmp_path / "foreign.safetensors")
    adapter = load_adapter(tmp_path / "foreign.safetensors")
    (weights,) = adapter.lora.values()
    assert adapter.family == family and adapter.recipe is None and adapter.tokens == {}
    assert weights.alpha == weights.rank == 2  # no alpha in the file
    assert torch.equal(weights.down, tensors[f"{KEY}.lora_down.weight"])


def test_a_foreign_lora_with_1x1_convolutions_and_half_precision_is_read(tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_proj_in"
    conv = {
        f"{key}.lora_down.weight": torch.ones(4, 8, 1, 1).half(),
        f"{key}.lora_up.weight": torch.ones(8, 4, 1, 1).half(),
        f"{key}.alpha": torch.tensor(2.0).half(),
    }
    save_file({**lora_of_width(768), **conv}, tmp_path / "a.safetensors")
    weights = load_adapter(tmp_path / "a.safetensors").lora["unet.mid_block.attentions.0.proj_in"]
    assert weights.down.shape == (4, 8) and weights.up.shape == (8, 4) and weights.alpha == 2.0
    assert weights.down.dtype == torch.float32


def test_a_foreign_lora_takes_the_embeddings_given(tmp_path: Path) -> None:
    save_file(lora_of_width(768), tmp_path / "foreign.safetensors")
    torch.save({"<birb>": torch.ones(768)}, tmp_path / "learned_embeds.bin")
    places = [tmp_path, tmp_path / "learned_embeds.bin"]  # a folder is not searched for any
    adapter = load_adapter(tmp_path / "foreign.safetensors", places)
    assert list(adapter.tokens) == ["birb"] and adapter.tokens["birb"]["clip_l"].shape == (1, 768)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{KEY}.dora_scale": torch.ones(8, 1)}, "dora_scale"),
        ({f"{KEY}.hada_w1_a": torch.ones(8, 1)}, "LoHa"),
        (
            {
                "lora_unet_mid_block_resnets_0_conv1.lora_down.weight": torch.ones(2, 8, 3, 3),
                "lora_unet_mid_block_resnets_0_conv1.lora_up.weight": torch.ones(8, 2, 1, 1),
            },
            "3x3",
        ),
        (
            {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 8)},
            "proj_in",
        ),
        ({f"{KEY}.alpha": torch.ones(3)}, "alpha"),
    ],
)
def test_a_lora_of_another_kind_is_refused(
    tmp_path: Path, extra: dict[str, torch.Tensor], message: str
) -> None:
    save_file({**lora_of_width(768), **extra}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=message):
        load_adapter(tmp_path / "a.safetensors")


def test_a_lora_of_unknown_width_is_refused(tmp_path: Path) -> None:
    save_file(lora_of_width(99), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="width 99"):
        load_adapter(tmp_path / "a.safetensors")


def test_a_checkpoint_is_refused_by_its_name(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.out.2.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="whole checkpoint"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged(adapter: Adapter, tmp_path: Path, share: float) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").lora
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(StorageError, match="empty" if not share else "damaged"):
        load_adapter(path, [tmp_path])


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.safetensors", b"hello, this is a text file", StorageError),
        ("a.pt", b"hello, this is a text file", StorageError),
        ("a.txt", b"hello", InputError),
        ("missing.safetensors", None, StorageError),
    ],
)
def test_a_file_that_is_none_is_named(
    tmp_path: Path, name: str, data: bytes | None, error: type[Exception]
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=name.replace(".", r"\.")):
        load_adapter(tmp_path / name)


def test_a_missing_embedding_is_named(adapter: Adapter, tmp_path: Path) -> None:
    files = save_adapter(adapter, tmp_path, tmp_path / "embeddings", "portrait")
    files.embeddings[1].unlink()
    with pytest.raises(StorageError, match=r"film\.safetensors"):
        load_adapter(files.lora, [tmp_path / "embeddings"])


def test_each_lora_finds_its_own_embeddings(
    make_adapter: Callable[..., Adapter],
    same: Callable[[Adapter, Adapter], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three trainings with the same token names, one of them saved over the first."""
    adapters = [make_adapter() for _ in range(3)]
    first = save_adapter(adapters[0], tmp_path, tmp_path, "first").lora
    kept = first.with_name("kept.safetensors")
    kept.write_bytes(first.read_bytes())
    second = save_adapter(adapters[1], tmp_path, tmp_path, "second")
    assert [path.stem for path in second.embeddings] == ["ada-2", "film-2"]
    save_adapter(adapters[2], tmp_path, tmp_path, "first")
    same(load_adapter(kept, [tmp_path]), adapters[0])  # from backups
    same(load_adapter(first, [tmp_path]), adapters[2])
    loaded = load_adapter(second.lora, [tmp_path])
    assert [concept.name for concept in loaded.concepts] == ["ada-2", "film-2"]
    assert torch.equal(loaded.tokens["ada-2"]["clip_l"], adapters[1].tokens["ada"]["clip_l"])


def test_an_embedding_of_another_run_is_never_taken(
    make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    first = save_adapter(make_adapter(), tmp_path, tmp_path / "one", "first").lora
    save_adapter(make_adapter(), tmp_path, tmp_path / "two", "second")
    with pytest.raises(StorageError, match=r"ada\.safetensors that was trained with it.*another"):
        load_adapter(first, [tmp_path / "two"])
    assert load_adapter(first, [tmp_path / "two", tmp_path / "one"]).tokens


def test_an_embedding_alone_is_an_adapter_of_one_token(adapter: Adapter, tmp_path: Path) -> None:
    files = save_adapter(adapter, tmp_path, tmp_path / "embeddings", "portrait")
    alone = load_adapter(files.embeddings[0])
    assert alone.lora == {} and alone.recipe == adapter.recipe
    assert [concept.name for concept in alone.concepts] == list(alone.tokens) == ["ada"]


def test_a_foreign_embedding_tells_its_family(tmp_path: Path) -> None:
    path = tmp_path / "birb.safetensors"
    for tensors, family in (
        ({"emb_params": torch.ones(1, 768)}, "sd1"),
        ({"emb_params": torch.ones(1, 1024)}, "sd2"),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "sdxl"),
    ):
        save_file(tensors, path)
        adapter = load_adapter(path)
        assert adapter.family == family and list(adapter.tokens) == ["birb"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"magicapture.format": "2"}, InputError, "format 2"),
        ({"magicapture.concepts": "[{"}, StorageError, "metadata is damaged"),
        ({"magicapture.concepts": '[{"name": "a", "colour": 1}]'}, StorageError, "colour"),
        ({"magicapture.family": "flux"}, StorageError, "flux"),
        *(
            ({f"magicapture.{key}": text}, StorageError, "metadata is damaged")
            for key, text in (
                ("concepts", "5"),
                ("concepts", "[null]"),
                ("concepts", "[" * 100_000),
                ("concepts", '[{"name": 5, "role": "subject"}]'),
                ("concepts", '[{"name": "a/b", "role": "subject"}]'),
                ("concepts", '[{"name": "ada", "role": "king"}]'),
                ("concepts", '[{"name": "ada", "role": "subject", "class_word": []}]'),
                ("concepts", '[{"name": "ada", "role": "subject", "vectors": 1.5}]'),
                ("info", "[1, 2]"),
                ("info", '{"a":' * 100_000),
                ("tokens", "[]"),
                ("tokens", '{"ada": 5}'),
                ("tokens", '{"../ada": "00"}'),
                ("tokens", '{"CON": "00"}'),
                ("tokens", '"ada"'),
                ("family", ""),
            )
        ),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(
    adapter: Adapter, tmp_path: Path, changes: dict, error: type[MagiCaptureError], message: str
) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").lora
    save_file(load_file(path), path, metadata=metadata_of(path) | changes)
    with pytest.raises(error, match=message):
        load_adapter(path, [tmp_path])


@pytest.mark.parametrize(
    "recipe",
    [
        *['{"sorcery": 1}', "{", "[1]", "5", '"text"', "[" * 100_000, '{"a":' * 100_000],
        *['{"lora": {"rank": {}}}', '{"lora": {"rank": 10' + "0" * 5000 + "}}"],
        *['{"phases": 5}', '{"phases": [{"rates": 1e999}]}', '{"resolution": []}'],
        *['{"prompts": {"composed": 5}}', '{"prompts": {"composed": ["{subject:>3000000000}"]}}'],
    ],
)
def test_a_recipe_that_cannot_be_read_costs_the_recipe_alone(
    adapter: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture, recipe: str
) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").lora
    metadata = metadata_of(path) | {"magicapture.recipe": recipe}
    save_file(load_file(path), path, metadata=metadata)
    loaded = load_adapter(path, [tmp_path])
    assert loaded.lora.keys() == adapter.lora.keys() and loaded.tokens.keys() == {"ada", "film"}
    assert loaded.recipe is None and "The recipe in the file is left out" in caplog.text
    assert loaded.prompt() == "a photo of <ada> woman in the <film> style"


def test_our_file_with_weights_of_another_family_is_refused(
    adapter: Adapter, tmp_path: Path
) -> None:
    path = save_adapter(replace(adapter, tokens={}), tmp_path, tmp_path, "portrait").lora
    save_file(lora_of_width(2048), path, metadata=metadata_of(path))
    with pytest.raises(InputError, match=r"says .* Diffusion 1\.x, but .* Diffusion XL"):
        load_adapter(path)


def test_the_facts_of_a_run_are_read_alone(adapter: Adapter, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").lora
    assert read_info(path) == adapter.info
    with pytest.raises(StorageError, match="no file"):
        read_info(tmp_path / "missing.safetensors")
    save_file(lora_of_width(768), path)
    assert read_info(path) == {}
