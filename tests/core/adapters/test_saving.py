"""Saving: every bit comes back, nothing that was there is lost, foreign files stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture.adapters import check_names, load_adapter, save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.errors import InputError, StorageError
from magicapture.tokens import Concept

Same = Callable[[Adapter, Adapter], None]
ADA = Concept("ada", "subject")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("targets", ["cross", "cross_kv", "cross_and_self", "all_linear"])
def test_every_bit_comes_back(
    make_adapter: Callable[..., Adapter], same: Same, tmp_path: Path, targets: str
) -> None:
    adapter = make_adapter(targets, alphas=(1.0, 0.25))
    files = save_adapter(adapter, tmp_path / "loras", tmp_path / "embeddings", "ada in film")
    assert files.lora == tmp_path / "loras" / "ada in film.safetensors"
    assert [path.name for path in files.embeddings] == ["ada.safetensors", "film.safetensors"]
    assert files.backups == ()
    same(load_adapter(files.lora, [tmp_path / "embeddings"]), adapter)
    same(load_adapter(str(files.lora), map(str, files.embeddings)), adapter)


def test_an_adapter_for_two_text_encoders_comes_back(
    make_adapter: Callable[..., Adapter], same: Same, tmp_path: Path
) -> None:
    one = make_adapter()
    second = {k.replace("clip_l", "clip_g"): w for k, w in one.lora.items() if "clip_l" in k}
    vectors = {"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}
    adapter = replace(one, lora={**one.lora, **second}, tokens={"ada": vectors}, family="sdxl")
    files = save_adapter(adapter, tmp_path, tmp_path, "portrait")
    same(load_adapter(files.lora, [tmp_path]), adapter)
    assert set(load_file(tmp_path / "ada.safetensors")) == {"clip_l", "clip_g"}
    starts = {key.split("_text_model")[0] for key in load_file(files.lora) if "_te" in key}
    assert starts == {"lora_te1", "lora_te2"}


def test_an_adapter_without_a_lora_comes_back(
    make_adapter: Callable[..., Adapter], same: Same, tmp_path: Path
) -> None:
    adapter = make_adapter(lora={})
    files = save_adapter(adapter, tmp_path, tmp_path, "tokens alone")
    same(load_adapter(files.lora, [tmp_path]), adapter)


def test_half_precision_halves_the_lora_and_rounds_once(adapter: Adapter, tmp_path: Path) -> None:
    full = save_adapter(adapter, tmp_path / "full", tmp_path, "a").lora
    half = save_adapter(adapter, tmp_path / "half", tmp_path, "a", dtype=torch.float16).lora
    tensors = lambda path: sum(t.nbytes for t in load_file(path).values())  # noqa: E731
    assert tensors(half) < 0.55 * tensors(full)
    for key, weights in load_adapter(half, [tmp_path]).lora.items():
        assert torch.equal(weights.down, adapter.lora[key].down.half().float())
        assert weights.alpha == adapter.lora[key].alpha


def test_files_are_as_readable_as_any_other(adapter: Adapter, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    files = save_adapter(adapter, tmp_path, tmp_path, "portrait")
    for path in (files.lora, *files.embeddings):
        assert path.stat().st_mode == plain.stat().st_mode


def test_own_files_are_kept_as_numbered_backups(
    make_adapter: Callable[..., Adapter], same: Same, tmp_path: Path
) -> None:
    adapters = [make_adapter() for _ in range(3)]
    for adapter in adapters:
        files = save_adapter(adapter, tmp_path, tmp_path, "portrait")
    same(load_adapter(files.lora, [tmp_path]), adapters[-1])
    assert {p.name for p in files.backups} == {
        f"{name}.safetensors.bak2" for name in ("portrait", "ada", "film")
    }
    old = tmp_path / "old"
    old.mkdir()
    for name in ("portrait", "ada", "film"):
        backup = tmp_path / f"{name}.safetensors.bak1"
        (old / f"{name}.safetensors").write_bytes(backup.read_bytes())
    same(load_adapter(old / "portrait.safetensors", [old]), adapters[0])


def test_own_files_are_refused_where_replacing_is_not_wanted(
    adapter: Adapter, tmp_path: Path
) -> None:
    save_adapter(adapter, tmp_path, tmp_path, "portrait")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"portrait\.safetensors"):
        save_adapter(adapter, tmp_path, tmp_path, "portrait", replace=False)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "foreign", ["portrait.safetensors", "film.safetensors", "ada.pt", "ada.bin"]
)
def test_foreign_files_are_refused_and_stay(adapter: Adapter, tmp_path: Path, foreign: str) -> None:
    path = tmp_path / foreign
    if path.suffix == ".safetensors":
        save_file({"emb_params": torch.ones(1, 768)}, path, metadata={"by": "another"})
    else:
        torch.save({"<ada>": torch.ones(768)}, path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"{foreign}.*was not written by MagiCapture"):
        save_adapter(adapter, tmp_path, tmp_path, "portrait")
    assert contents(tmp_path) == before


def test_a_damaged_file_in_the_way_counts_as_foreign(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "ada.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="left alone"):
        save_adapter(adapter, tmp_path, tmp_path, "portrait")


def test_names_are_checked_before_training(adapter: Adapter, tmp_path: Path) -> None:
    lora = tmp_path / "portrait.safetensors"
    assert check_names([ADA], [tmp_path, tmp_path / "missing"], lora) == []
    save_adapter(adapter, tmp_path, tmp_path, "portrait")
    lines = check_names([ADA], [tmp_path], lora)
    assert len(lines) == 2 and "ada.safetensors" in lines[0] and "backup" in lines[0]
    torch.save({"<ada>": torch.ones(768)}, tmp_path / "ada.pt")
    with pytest.raises(InputError, match=r"ada\.pt"):
        check_names([ADA], [tmp_path])
    lora.write_bytes(b"foreign")
    with pytest.raises(InputError, match=r"portrait\.safetensors"):
        check_names([], [], lora)


def test_a_failed_write_leaves_every_file_as_it_was(
    make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    save_adapter(make_adapter(), tmp_path / "loras", tmp_path / "embeddings", "portrait")
    (tmp_path / "file").write_bytes(b"where a folder is needed")
    before = contents(tmp_path)
    for name in ("portrait", "new"):  # the LoRA is written first, and taken back
        with pytest.raises(StorageError, match=r"ada\.safetensors could not be written"):
            save_adapter(make_adapter(), tmp_path / "loras", tmp_path / "file" / "sub", name)
        assert contents(tmp_path) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named_and_undone(
    make_adapter: Callable[..., Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magicapture.adapters import saving

    loras, embeddings = tmp_path / "loras", tmp_path / "embeddings"
    save_adapter(make_adapter(), loras, embeddings, "portrait")
    before = contents(tmp_path)
    real, written = saving.writer, []

    def writer(*content: dict) -> Callable[[Path], object]:
        written.append(real(*content))
        if len(written) < 3:
            return written[-1]
        return lambda path: Path("/dev/full").write_bytes(b"x")  # the system's own error

    monkeypatch.setattr(saving, "writer", writer)
    with pytest.raises(StorageError, match="full"):
        save_adapter(make_adapter(), loras, embeddings, "portrait")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["../portrait", "a/b", "", "con", "x" * 300])
def test_a_name_that_is_no_name_is_refused(adapter: Adapter, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="output name"):
        save_adapter(adapter, tmp_path / "loras", tmp_path, name)
    assert contents(tmp_path) == {}


def test_a_lora_named_like_a_token_in_one_folder_is_refused(
    adapter: Adapter, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="also a token's"):
        save_adapter(adapter, tmp_path, tmp_path, "ada")
    save_adapter(adapter, tmp_path, tmp_path / "embeddings", "ada")
