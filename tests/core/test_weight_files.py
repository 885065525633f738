"""Weight files: what is read, what is refused, and that no code in them ever runs."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.torch_version import TorchVersion

from magicapture.adapters import load_adapter
from magicapture.backbones import load_backbone
from magicapture.errors import InputError, MagiCaptureError, StorageError
from magicapture.faces.detect import load_detector
from magicapture.faces.embed import load_face_embedder
from magicapture.faces.parse import load_parser
from magicapture.refine.models import load_image_model
from magicapture.weight_files import (
    difference,
    may_hold_code,
    read_entries,
    read_metadata,
    read_tensors,
)

READERS = (
    load_adapter,
    load_backbone,
    load_detector,
    load_face_embedder,
    load_image_model,
    load_parser,
    read_entries,
)
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class Runs:
    """A pickle that writes a file where it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".safetensors", ".SAFETENSORS", ".pt", ".PTH", ".bin", ".Ckpt"])
@pytest.mark.parametrize("mapped", [True, False])
def test_tensors_under_any_spelling_of_an_ending(tmp_path: Path, ending: str, mapped: bool) -> None:
    path = tmp_path / f"x{ending}"
    if ending.lower() == ".safetensors":
        save_file(TENSORS, path, {"title": "x"})
    else:
        torch.save({"state_dict": TENSORS, "epoch": 3}, path)
    found = read_tensors(path, mapped=mapped)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    is_safetensors = ending.lower() == ".safetensors"
    assert read_metadata(path) == ({"title": "x"} if is_safetensors else {})


def test_the_bare_pickle_of_old_programs_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    found = read_tensors(tmp_path / "old.bin", mapped=True)
    assert torch.equal(found["a"], TENSORS["a"])


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_code_in_a_pickle_is_neither_run_nor_advised(tmp_path: Path, read: Callable) -> None:
    """torch's own error tells the reader how to run it all the same."""
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Runs(tmp_path / "ran")}, path)
    with pytest.raises(InputError, match="could run code") as error:
        read(path)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(error.value)
    assert "trusted source" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_no_pickle_is_opened_where_torch_does_not_hold_it_to_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable
) -> None:
    path = tmp_path / "x.pth"
    torch.save(TENSORS, path)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1+cu121"))
    monkeypatch.delattr(torch, "load")
    with pytest.raises(InputError, match=r"CVE-2025-32434.*\.safetensors.*2\.6"):
        read(path)
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], TENSORS["a"])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, device="meta"),
        torch.ones(1).expand(10**10),
        torch.ones(2, 2).to_sparse(),
    ],
    ids=["without values", "one value for 40 GB", "sparse"],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_tensors_that_are_not_simply_there(tmp_path: Path, tensor: Any, wrapped: bool) -> None:
    entries = {"a": tensor}
    torch.save({"state_dict": entries} if wrapped else entries, tmp_path / "x.pt")
    with pytest.raises(InputError, match="'a' without all of its values"):
        read_tensors(tmp_path / "x.pt")


def test_a_state_dict_inside_itself(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match="no weights"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is a text file", "damaged"),
        (b"PK\x03\x04 and no more", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
    ],
)
def test_files_that_are_none(tmp_path: Path, ending: str, data: bytes, message: str) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(data)
    with pytest.raises(StorageError, match=message):
        read_tensors(path)
    if ending == ".safetensors":
        with pytest.raises(StorageError, match=message):
            read_metadata(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin"])
def test_damage_is_told_as_such(tmp_path: Path, ending: str) -> None:
    """Cut short anywhere, or with a byte changed where the names are."""
    path = tmp_path / f"x{ending}"
    if ending == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=ending == ".pt")
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(MagiCaptureError):
            read_tensors(path)
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read_tensors(path)
        except MagiCaptureError as error:
            assert "weights_only" not in str(error)


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no file"):
        read_tensors(tmp_path / "x.pt")
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(InputError, match=r"ending in \.safetensors"):
        read_tensors(tmp_path / "x.txt")
    for value in ([torch.ones(1)], {1: torch.ones(1)}, torch.ones(1)):
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises(InputError, match="expected named tensors"):
            read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors", ".ckpt"])
def test_torchscript_is_no_weight_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    torch.jit.script(nn.Linear(1, 1)).save(str(path))
    assert may_hold_code(path)
    with pytest.raises(InputError, match="TorchScript"):
        read_tensors(path)


def test_what_holds_no_code(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "code.pth")  # the name is inside the file as well
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert not any(map(may_hold_code, [*tmp_path.iterdir(), tmp_path / "absent", tmp_path]))


def test_a_difference_in_words() -> None:
    layer = nn.Linear(2, 3)
    state = layer.state_dict()
    assert difference(layer, state) == ""
    other = {"weight": torch.ones(3, 5), "scale": torch.ones(1)}
    assert difference(layer, other) == (
        "lacks 1 of its weights, such as bias; holds 1 that are unknown, such as scale; has 1 of "
        "other shapes: weight is (3, 5), expected (3, 2)"
    )
