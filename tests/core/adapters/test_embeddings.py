"""Embedding files of every program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture.adapters import read_embedding, save_adapter
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
