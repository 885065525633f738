"""Embedding files of every program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture.adapters import load_adapter, read_embedding, save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.errors import InputError, StorageError

VECTORS = torch.arange(2.0 * 768).reshape(2, 768)


def write(path: Path, entries: Any) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(entries, path)
    return path


@pytest.mark.parametrize(
    ("name", "entries", "token"),
    [
        ("ada.safetensors", {"emb_params": VECTORS}, "ada"),
        ("learned_embeds.bin", {"<ada>": VECTORS}, "ada"),
        ("learned_embeds.safetensors", {"<ada>": VECTORS.half()}, "ada"),
        (
            "ada.pt",
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": torch.nn.Parameter(VECTORS)},
                "name": "ada in training",
                "step": 500,
            },
            "ada",
        ),
    ],
)
def test_every_form_of_one_encoder(tmp_path: Path, name: str, entries: Any, token: str) -> None:
    embedding = read_embedding(write(tmp_path / name, entries))
    assert embedding.name == token
    assert list(embedding.vectors) == ["clip_l"]
    vectors = embedding.vectors["clip_l"]
    assert torch.equal(vectors, VECTORS) and vectors.dtype == torch.float32
    assert not vectors.requires_grad


def test_a_single_vector_becomes_a_row(tmp_path: Path) -> None:
    embedding = read_embedding(write(tmp_path / "a.bin", {"<a>": VECTORS[0]}))
    assert embedding.vectors["clip_l"].shape == (1, 768)


def test_two_encoders(tmp_path: Path) -> None:
    entries = {"clip_l": VECTORS, "clip_g": torch.ones(2, 1280)}
    embedding = read_embedding(write(tmp_path / "ada.safetensors", entries))
    assert torch.equal(embedding.vectors["clip_g"], entries["clip_g"])


def test_a_real_file_of_diffusers(shared_assets: Path) -> None:
    embedding = read_embedding(shared_assets / "embeddings" / "learned_embeds_birb-style.bin")
    assert embedding.name == "birb-style"
    assert embedding.vectors["clip_l"].shape == (1, 768)


def test_our_file_is_one_tensor_that_names_its_token(adapter: Adapter, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").embeddings[0]
    assert list(load_file(path)) == ["emb_params"]
    renamed = path.rename(tmp_path / "renamed.safetensors")
    assert read_embedding(renamed).name == "ada"


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "entries", "error", "message"),
    [
        ("a.pt", {"<a>": VECTORS, "evil": Evil()}, InputError, "could run code"),
        ("a.pt", [VECTORS], InputError, "list"),
        ("a.pt", {"<a>": "text"}, InputError, "str"),
        ("a.pt", {"string_to_param": {}}, InputError, "0 entries"),
        ("a.safetensors", {"a": VECTORS, "b": VECTORS.clone()}, InputError, "2 entries"),
        ("a.safetensors", {"a": torch.ones(2, 3, 4)}, InputError, r"\(2, 3, 4\)"),
        ("a.safetensors", {"a": torch.full((1, 768), torch.nan)}, InputError, "NaN"),
    ],
)
def test_what_is_no_embedding_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    entries: Any,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        read_embedding(write(tmp_path / name, entries))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("size", [0, 5, 2000])
def test_a_truncated_file_is_damaged(tmp_path: Path, name: str, size: int) -> None:
    path = write(tmp_path / name, {"<a>": VECTORS})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StorageError, match="empty" if not size else "damaged"):
        read_embedding(path)


LORA = {
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": 768,
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": 768,
}
XL = {key.replace("lora_te_", "lora_te1_"): 2048 if "unet" in key else 768 for key in LORA}


def lora(widths: dict[str, int]) -> dict[str, torch.Tensor]:
    downs = {key: torch.ones(2, width) for key, width in widths.items()}
    return downs | {key.replace("lora_down", "lora_up"): torch.ones(4, 2) for key in widths}


@pytest.mark.parametrize("key", ["string_to_param.*", "emb_params", "clip_l"])
def test_embeddings_bundled_with_a_lora_are_its_tokens(tmp_path: Path, key: str) -> None:
    """A1111's bundles, of kohya's tools and of OneTrainer."""
    bundle = {f"bundle_emb.ada.{key}": VECTORS, f"bundle_emb.film.{key}": VECTORS[:1].clone()}
    adapter = load_adapter(write(tmp_path / "a.safetensors", {**lora(LORA), **bundle}))
    assert adapter.family == "sd1" and len(adapter.lora) == 2
    assert torch.equal(adapter.tokens["ada"]["clip_l"], VECTORS)
    assert torch.equal(adapter.tokens["film"]["clip_l"], VECTORS[:1])
    alone = load_adapter(write(tmp_path / "b.safetensors", bundle))
    assert alone.lora == {} and set(alone.tokens) == {"ada", "film"}


def test_bundled_embeddings_of_two_encoders_with_a_name_of_two_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ComfyUI#3659 and OneTrainer#485; what follows the encoder is left out, with a word."""
    bundle = {
        "bundle_emb.ema yasuhara.clip_l": VECTORS,
        "bundle_emb.ema yasuhara.clip_g": torch.ones(2, 1280),
        "bundle_emb.ema yasuhara.clip_l_out": torch.ones(2, 768),
    }
    adapter = load_adapter(write(tmp_path / "a.safetensors", {**lora(XL), **bundle}))
    assert adapter.family == "sdxl"
    assert {key: of.shape for key, of in adapter.tokens["ema-yasuhara"].items()} == {
        "clip_l": (2, 768),
        "clip_g": (2, 1280),
    }
    assert "'ema-yasuhara' here" in caplog.text and "clip_l_out is left out" in caplog.text


@pytest.mark.parametrize(
    "bundle",
    [
        {"bundle_emb.ada 1.clip_l": VECTORS, "bundle_emb.ada/1.clip_l": VECTORS.clone()},
        {"bundle_emb.ada.clip_l": torch.full((1, 768), torch.inf)},
        {"bundle_emb.日本.clip_l": VECTORS},
        {"bundle_emb.con.clip_l": VECTORS},
        {"bundle_emb.ada.clip_l": torch.ones(1, 1024)},
    ],
)
def test_bundled_embeddings_that_cannot_be_used_are_refused(
    tmp_path: Path, bundle: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load_adapter(write(tmp_path / "a.safetensors", {**lora(LORA), **bundle}))


@pytest.mark.parametrize(
    "name", ["a/b", "../ada", "x:stream", "CON", "nul", "a\x1b[31mb", "", "x" * 300]
)
def test_a_name_in_the_metadata_is_checked_as_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ada.safetensors"
    save_file({"emb_params": VECTORS}, path, {"magicapture.token": name})
    for read in (read_embedding, load_adapter):
        with pytest.raises(InputError, match=r"ada\.safetensors: The token name") as caught:
            read(path)
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("file", "key", "name"),
    [
        ("ema yasuhara.safetensors", "emb_params", "ema-yasuhara"),
        ("v1.2.pt", "<v1.2>", "v1-2"),
        ("a.pt", "<a/b>", "a-b"),
        ("ada (1).safetensors", "emb_params", "ada-1"),
    ],
)
def test_other_programs_names_are_made_usable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, key: str, name: str
) -> None:
    adapter = load_adapter(write(tmp_path / file, {key: VECTORS}))
    assert adapter.vectors().written("clip_l") == {name: 2}
    assert f"is called {name!r} here" in caplog.text
