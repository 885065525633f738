"""Photo sets from the page and back: what may be uploaded, and Save Photo Set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def nodes(pack):
    return pack("nodes.references")


@pytest.fixture
def inputs(comfyui, tmp_path, monkeypatch) -> Path:
    """ComfyUI's input folder."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return tmp_path


def test_the_page_is_told_what_may_be_uploaded(nodes) -> None:
    """web/js/upload.js reads the endings from the input's definition, as the server sends it."""
    info = nodes.MagiCaptureLoadPhotoSet.GET_NODE_INFO_V1()["input"]["required"]["folder"]
    assert {".jpg", ".png", ".webp", ".txt", ".landmarks.json"} <= set(info[1]["endings"])
    assert info[1]["default"] == nodes.NO_FOLDER


def test_a_set_is_saved_and_loaded_again(nodes, pack, executor, inputs) -> None:
    data = pack("magicapture.data")
    mask = torch.zeros(1, 48, 40)
    mask[:, 10:30, 10:30] = 1
    images = (torch.rand(2, 3, 48, 40) * 255).round() / 255
    given = data.ReferenceSet.of(images, face_masks=[mask, mask], captions=["one", "two"])
    saved = nodes.MagiCaptureSavePhotoSet.execute(given, "people/ada")
    assert saved.args[0] is given and saved.args[1] == "people/ada"
    assert "2 photos, 2 masks, 2 captions" in saved.ui["text"][0]
    (read,) = nodes.MagiCaptureLoadPhotoSet.execute(["people/ada"]).args
    for a, b in zip(given, read, strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.face_mask, b.face_mask)
        assert a.caption == b.caption
    other = data.ReferenceSet.of(1 - images)
    again = nodes.MagiCaptureSavePhotoSet.execute(other, "people/ada")
    assert again.args[1] == "people/ada-2" and "people/ada-2" in again.ui["text"][0]


@pytest.mark.parametrize("name", ["../ada", "/tmp/ada", "", "a/../../b", "con"])
def test_a_set_never_leaves_the_input_folder(nodes, pack, inputs, name) -> None:
    errors = pack("magicapture.errors")
    given = pack("magicapture.data").ReferenceSet.of(torch.rand(1, 3, 16, 16))
    with pytest.raises((errors.InputError, errors.StorageError)):
        nodes.MagiCaptureSavePhotoSet.execute(given, name)
    assert not list(inputs.iterdir())


def test_a_link_that_leads_out_of_the_input_folder_is_no_way(nodes, pack, inputs, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (inputs / "out").symlink_to(elsewhere)
    given = pack("magicapture.data").ReferenceSet.of(torch.rand(1, 3, 16, 16))
    with pytest.raises(pack("magicapture.errors").StorageError):
        nodes.MagiCaptureSavePhotoSet.execute(given, "out/ada")
    assert not list(elsewhere.iterdir())


def test_every_socket_of_the_pack_has_a_colour(pack) -> None:
    sockets = [v for v in vars(pack("nodes._sockets")).values() if hasattr(v, "io_type")]
    types = {s.io_type for s in sockets if s.io_type.startswith("MAGICAPTURE_")}
    script = (ROOT / "web" / "js" / "colours.js").read_text("utf-8")
    assert len(types) >= 9
    assert {t for t in types if f"{t}: " not in script} == set()
