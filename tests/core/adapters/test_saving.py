"""Saving: every bit comes back, nothing that was there is lost, foreign files stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
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


def test_the_three_newest_backups_are_kept_of_what_changed(
    make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapters = [make_adapter() for _ in range(6)]
    for adapter in adapters:
        for _ in range(2):  # the second time, nothing has changed
            files = save_adapter(adapter, tmp_path, tmp_path, "portrait")
        assert files.backups == ()
    kept = sorted(path.name for path in tmp_path.glob("*.bak*"))
    names = ("ada", "film", "portrait")
    assert kept == [f"{name}.safetensors.bak{n}" for name in names for n in (3, 4, 5)]
    for number, older in zip((3, 4, 5), adapters[2:5], strict=True):
        (tensor,) = load_file(tmp_path / f"ada.safetensors.bak{number}").values()
        assert torch.equal(tensor, older.tokens["ada"]["clip_l"])


def test_a_changed_style_leaves_the_persons_embedding_without_a_backup(
    make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    one, other = make_adapter(), make_adapter()
    save_adapter(one, tmp_path, tmp_path, "portrait")
    mixed = {"ada": one.tokens["ada"], "film": other.tokens["film"]}
    backups = save_adapter(replace(one, tokens=mixed), tmp_path, tmp_path, "portrait").backups
    assert {path.name for path in backups} == {
        "film.safetensors.bak1",
        "portrait.safetensors.bak1",  # the same tensors, and other tokens
    }


def test_a_token_name_of_another_lora_is_left_to_it(
    make_adapter: Callable[..., Adapter], same: Same, tmp_path: Path
) -> None:
    adapters = [make_adapter() for _ in range(4)]
    names = ["first", "second", "third", "second"]
    saved = [
        save_adapter(adapter, tmp_path, tmp_path, name)
        for adapter, name in zip(adapters, names, strict=True)
    ]
    stems = [[path.stem for path in files.embeddings] for files in saved]
    assert stems == [["ada", "film"], *([f"ada-{n}", f"film-{n}"] for n in (2, 3, 2))]
    assert saved[0].notes == ()
    assert "belongs to another LoRA, so this one is embedding:ada-2" in saved[1].notes[0]
    same(load_adapter(saved[0].lora, [tmp_path]), adapters[0])
    again = load_adapter(saved[3].lora, [tmp_path])
    assert torch.equal(again.tokens["ada-2"]["clip_l"], adapters[3].tokens["ada"]["clip_l"])
    assert again.prompt() == "a photo of <ada-2> woman in the <film-2> style"


def test_the_name_may_have_its_ending_and_a_sub_folder(adapter: Adapter, tmp_path: Path) -> None:
    for name in ("ada.safetensors", "ADA.SafeTensors", "people/ada", "people\\bob.safetensors"):
        save_adapter(adapter, tmp_path / "loras", tmp_path, name)
    written = {str(p.relative_to(tmp_path / "loras")) for p in (tmp_path / "loras").rglob("*.s*")}
    assert written == {
        *("ada.safetensors", "ADA.safetensors", "people/ada.safetensors"),
        "people/bob.safetensors",
    }
    (tmp_path / "loras" / "out").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="is not inside"):
        save_adapter(adapter, tmp_path / "loras", tmp_path, "out/ada")


def test_what_the_disk_does_not_take_is_saved_elsewhere(
    adapter: Adapter, same: Same, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"where a folder is needed")
    bad, spare = tmp_path / "file" / "sub", [tmp_path / "file", tmp_path / "spare"]
    with pytest.raises(StorageError, match="file"):
        save_adapter(adapter, bad, tmp_path, "people/ada")
    files = save_adapter(adapter, bad, tmp_path, "people/ada", spare=spare)
    assert files.lora == tmp_path / "spare" / "people" / "ada.safetensors"
    assert f"saved in {tmp_path / 'spare'} instead" in files.notes[0] and str(bad) in files.notes[0]
    same(load_adapter(files.lora, [files.lora.parent / "embeddings"]), adapter)


def test_a_file_is_held_in_memory_once(tmp_path: Path) -> None:
    """256 MiB of a LoRA are written with less than 64 MiB more."""
    script = f"""
import resource, torch
from magicapture.adapters import save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.lora import LoraWeights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
big = LoraWeights(torch.ones(64, 2**18), torch.ones(2**18, 64) , 1e-3)
lora = {{f"unet.down_blocks.0.attentions.{{n}}.proj_in": big for n in range(2)}}
adapter = Adapter(lora, {{"ada": {{"clip_l": torch.ones(1, 768)}}}}, "sd1")
before = peak()
save_adapter(adapter, {str(tmp_path)!r}, {str(tmp_path)!r}, "portrait")
print(peak() - before)
"""
    pytest.importorskip("resource", reason="memory is measured as on POSIX")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "portrait.safetensors").stat().st_size > 2**28
    assert float(done.stdout) < 64


def test_a_killed_save_leaves_nothing_that_is_listed(adapter: Adapter, tmp_path: Path) -> None:
    """SIGKILL while the file is half written; the next save takes the leftover away."""
    script = f"""
import os, signal
from magicapture.files import atomic_write
def write(path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
atomic_write({str(tmp_path / "portrait.safetensors")!r}, write)
"""
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp-magicapture"
    save_adapter(adapter, tmp_path, tmp_path, "portrait")
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


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
    (line,) = check_names([ADA], [tmp_path], tmp_path / "other.safetensors")
    assert "'ada' belongs to another LoRA, so this one will be 'ada-2'" in line
    (line,) = check_names([ADA], [tmp_path])
    assert "embedding:ada-2" in line
    torch.save({"<ada>": torch.ones(768)}, tmp_path / "ada.pt")
    with pytest.raises(InputError, match=r"ada\.pt"):
        check_names([ADA], [tmp_path])
    lora.write_bytes(b"foreign")
    with pytest.raises(InputError, match=r"portrait\.safetensors"):
        check_names([], [], lora)


@pytest.mark.parametrize("name", ["portrait", "new"])
def test_a_failed_write_leaves_every_file_as_it_was(
    make_adapter: Callable[..., Adapter], tmp_path: Path, name: str
) -> None:
    """The system refuses the LoRA, after the embeddings are written."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX's")
    loras, embeddings = tmp_path / "loras", tmp_path / "embeddings"
    files = save_adapter(make_adapter(), loras, embeddings, "portrait")
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in files.embeddings)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100, hard))
    try:
        with pytest.raises(StorageError, match="full"):
            save_adapter(make_adapter(), loras, embeddings, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


def test_a_folder_that_is_none_costs_nothing(adapter: Adapter, tmp_path: Path) -> None:
    save_adapter(adapter, tmp_path / "loras", tmp_path / "embeddings", "portrait")
    (tmp_path / "file").write_bytes(b"where a folder is needed")
    before = contents(tmp_path)
    for loras, embeddings in (("file", "embeddings"), ("loras", "file/sub")):
        with pytest.raises(StorageError, match=r"could not be written"):
            save_adapter(adapter, tmp_path / loras, tmp_path / embeddings, "new")
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["../portrait", "a//b", "a/../b", "/a", "", ".safetensors", "a/con", "x" * 300]
)
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


def test_one_file_holds_the_tokens_as_well(
    make_adapter: Callable[..., Adapter], same: Same, tmp_path: Path
) -> None:
    """The whole adapter comes back from the file alone, every bit of it."""
    adapter = make_adapter()
    files = save_adapter(adapter, tmp_path, tmp_path / "embeddings", "portrait", bundle=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["portrait.safetensors"]
    assert files.embeddings == () and set(files.adapter.tokens) == {"ada", "film"}
    same(load_adapter(files.lora), adapter)
    save_adapter(make_adapter(), tmp_path, tmp_path, "other")  # embeddings of the same names
    same(load_adapter(files.lora, [tmp_path]), adapter)
    half = save_adapter(adapter, tmp_path, tmp_path, "half", bundle=True, dtype=torch.float16)
    for token, vectors in load_adapter(half.lora).tokens.items():
        assert torch.equal(vectors["clip_l"], adapter.tokens[token]["clip_l"])


@pytest.mark.parametrize("name", ["ada-", "a_", "a" * 110, "A1"])
def test_a_bundle_keeps_every_name_that_a_token_may_have(
    adapter: Adapter, same: Same, tmp_path: Path, name: str
) -> None:
    renamed = replace(adapter, tokens={name: adapter.tokens["ada"]}, concepts=())
    same(load_adapter(save_adapter(renamed, tmp_path, "", "one", bundle=True).lora), renamed)


def test_the_keys_of_a_bundle_are_those_that_other_programs_read(
    adapter: Adapter, tmp_path: Path
) -> None:
    file = save_adapter(adapter, tmp_path, tmp_path, "one", bundle=True).lora
    inside = {key for key in load_file(file) if not key.startswith("lora_")}
    assert inside == {"bundle_emb.ada.string_to_param.*", "bundle_emb.film.string_to_param.*"}
    vectors = {"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}
    xl = replace(adapter, lora={}, tokens={"ada": vectors}, family="sdxl")
    file = save_adapter(xl, tmp_path, tmp_path, "xl", bundle=True).lora
    assert set(load_file(file)) == {"bundle_emb.ada.clip_l", "bundle_emb.ada.clip_g"}
    assert torch.equal(load_adapter(file).tokens["ada"]["clip_g"], vectors["clip_g"])


def test_a_bundled_token_of_another_training_is_not_taken(
    adapter: Adapter, same: Same, tmp_path: Path
) -> None:
    """The file was edited; the right token is taken where its file is found."""
    files = save_adapter(adapter, tmp_path, tmp_path / "embeddings", "three")
    bundle = save_adapter(adapter, tmp_path, tmp_path / "embeddings", "one", bundle=True).lora
    with safe_open(bundle, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(bundle)
    tensors["bundle_emb.ada.string_to_param.*"] += 1
    save_file(tensors, bundle, metadata)
    with pytest.raises(StorageError, match=r"needs the embedding ada.*bundled.*another training"):
        load_adapter(bundle)
    same(load_adapter(bundle, [files.embeddings[0].parent]), adapter)


def test_a_bundle_does_not_touch_the_embeddings_folder(adapter: Adapter, tmp_path: Path) -> None:
    torch.save({"<ada>": torch.ones(768)}, tmp_path / "ada.pt")  # would be in the way otherwise
    before = contents(tmp_path)
    save_adapter(adapter, tmp_path / "loras", tmp_path, "ada", bundle=True)
    assert before.items() <= contents(tmp_path).items()


def test_old_backups_that_go_are_named(
    make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    for number in range(5):
        files = save_adapter(make_adapter(), tmp_path, tmp_path, "portrait")
        told = " ".join(files.notes)
        assert ("portrait.safetensors.bak1" in told) == (number == 4)
