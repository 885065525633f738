"""The command `doctor` on everything that can be wrong with photos, each with a clear word."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from magicapture.adapters import save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.cli import main

Photos = dict[str, dict]


@pytest.fixture(scope="module")
def options(shared_assets: Path) -> list[str]:
    face = shared_assets / "face"
    embedder = str(face / "foamliu_MobileFaceNet.onnx")
    given = ["--detector", str(face / "yunet_s_640_640.onnx"), "--models", str(face)]
    return [*given, "--face-model", embedder, "--face-model-input", "imagenet"]


@pytest.fixture(scope="module")
def photos(bad_photos: Path, options: list[str]) -> Photos:
    """What the command wrote of each photo, by the name without its ending."""
    out = bad_photos.parent / "figures.json"
    sheet = bad_photos.parent / "sheet.png"
    assert (
        main(["doctor", str(bad_photos), *options, "--json", str(out), "--sheet", str(sheet)]) == 0
    )
    assert Image.open(sheet).size[0] > 1000
    return {Path(p["name"]).stem: p for p in json.loads(out.read_text())["photos"]}


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("good2", "use", ""),
        ("good3", "use", ""),
        ("good4", "use", ""),
        ("grey", "use", ""),
        ("rgba", "use", ""),
        ("huge", "use", ""),
        ("turned", "use", ""),
        ("nobody", "leave out", "no face was found"),
        ("crowd", "care", "12 faces; check that the right one is marked"),
        ("edge", "leave out", "of the face is cut off"),
        ("small", "care", "px wide at training size; crop the photo around it"),
        ("twin", "care", "nearly the same as good2.jpg"),
    ],
)
def test_each_photo_has_its_verdict(photos, name, verdict, reason) -> None:
    found = photos[name]
    assert found["verdict"] == verdict, found
    assert reason in "; ".join(found["reasons"]), found
    assert bool(found["reasons"]) == (verdict != "use"), found


def test_figures_of_odd_photos_are_right(photos) -> None:
    assert abs(photos["turned"]["roll"]) < 15  # upright, by its EXIF data
    assert photos["small"]["width"] == pytest.approx(40, abs=4)
    # Of twelve people the one whom the other photos show, in the third row.
    assert photos["crowd"]["box"][1] > 400 and photos["crowd"]["likeness"] > 0.5


def test_files_that_are_no_photos_are_named(bad_photos, options, tmp_path, caplog) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("good2.jpg", "notes.txt", "list.csv"):
        (folder / name).write_bytes((bad_photos / name).read_bytes())
    with caplog.at_level(logging.INFO):
        assert main(["doctor", str(folder), *options]) == 0
    assert "list.csv, notes.txt" in caplog.text and "left alone" in caplog.text
    assert "which is few" in caplog.text and "another expression" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b"taken in May"}, "has no photo; expected files ending in .png"),
        ({}, "it is empty"),
        ({"torn.jpg": b"\xff\xd8\xff\xe0 torn"}, "torn.jpg cannot be read"),
    ],
)
def test_what_cannot_be_read_stops_with_a_word(options, tmp_path, caplog, files, message) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert main(["doctor", str(folder), *options]) == 2
    assert message in caplog.text


def test_a_torn_photo_is_named_and_not_half_read(bad_photos, options, tmp_path, caplog) -> None:
    whole = (bad_photos / "good2.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    assert main(["doctor", str(tmp_path), *options]) == 2
    assert "torn.jpg cannot be read" in caplog.text and "damaged" in caplog.text


def test_identity_of_pictures_from_the_command_line(
    bad_photos, options, shared_assets, tmp_path, caplog
) -> None:
    folder = tmp_path / "person"
    folder.mkdir()
    for name in ("good2.jpg", "good3.jpg", "good4.jpg"):
        (folder / name).write_bytes((bad_photos / name).read_bytes())
    (folder / "notes.csv").write_text("a,b")
    others = shared_assets / "photos" / "styles"
    pictures = [str(bad_photos / "turned.jpg"), str(others / "Gentleman.jpg")]
    loss = str(shared_assets / "face" / "foamliu_MobileFaceNet.onnx")
    figures = ["--json", str(tmp_path / "figures.json"), "--loss-face-model", loss]
    with caplog.at_level(logging.INFO):
        assert main(["identity", str(folder), *pictures, *options, *figures]) == 0
    assert caplog.text.count("notes.csv") == 1
    data = json.loads((tmp_path / "figures.json").read_text())
    vectors = {"ada": {"clip_l": torch.zeros(1, 768)}}
    adapter = Adapter({}, vectors, "sd1", info={"face_model": Path(loss).name})
    files = save_adapter(adapter, tmp_path, tmp_path / "embeddings", "ada")
    figures = ["--adapter", str(files.lora), "--json", str(tmp_path / "again.json")]
    assert main(["identity", str(folder), *pictures, *options, *figures]) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == data
    own, other = data["shares"]
    assert own > 0.8 and abs(other) < 0.3 and data["photos"] == 3
    assert data["of_the_loss"] is True and "WARNING" in caplog.text
