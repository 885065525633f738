"""Raw photos on the command line: faces are found and judged, and their masks can be written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magicapture.cli import main
from magicapture.cli.arguments import parser
from magicapture.cli.faces import embedder_from, faces_found
from magicapture.cli.recipe import recipe_from
from magicapture.data import Learnable, load_folder
from magicapture.errors import InputError
from magicapture.faces import models, trial
from magicapture.faces.align import ARCFACE_TEMPLATE
from magicapture.tokens import Concept

SIDE = 256
DRAWN = Image.open(Path(trial.__file__).with_name("drawn_faces.jpg"))
"""Four drawn faces, of 128 px."""


def face(number: int) -> Image.Image:
    """One of the four drawn faces."""
    x, y = 128 * (number % 2), 128 * (number // 2)
    return DRAWN.crop((x, y, x + 128, y + 128)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGICAPTURE_MODELS", raising=False)
    monkeypatch.setattr(models, "find_spec", lambda _: None)  # packages that bring models


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of two drawn faces each, without masks."""
    made = tmp_path / "source", tmp_path / "style"
    for index, folder in enumerate(made):
        folder.mkdir()
        for number in (0, 1):
            face(2 * index + number).save(folder / f"{number}.png")
    return made


Found = Callable[..., tuple[Learnable, Learnable]]


@pytest.fixture
def found(folders: tuple[Path, Path]) -> Found:
    """What `train` makes of the photos; more words for its command line may be given."""

    def run(*more: str) -> tuple[Learnable, Learnable]:
        source, style = map(str, folders)
        words = ["train", "--base", "x", "--source", source, "--style", style, "--out", "x"]
        arguments = parser().parse_args([*words, "--resolution", "256", *more])
        return faces_found(
            Learnable(Concept("ada", "subject", "person"), load_folder(source)),
            Learnable(Concept("film", "style", "person"), load_folder(style)),
            arguments,
            recipe_from(arguments),
            embedder_from(arguments),
        )

    return run


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """The lines of a level and above since the last call."""
    said = [r.getMessage() for r in caplog.records if r.levelno >= level]
    caplog.clear()
    return said


# -- train ------------------------------------------------------------------------------------


def test_raw_photos_get_masks_landmarks_and_verdicts(
    found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    for learnable in found():
        for photo in learnable.photos:
            assert photo.face_mask is not None and photo.landmarks is not None
            points = photo.landmarks.round().long()
            assert (photo.face_mask[0, points[:, 1], points[:, 0]] > 0.9).all()
    said = messages(caplog)
    for line in ("Photos for <ada>:", "Photos for <film>:", "Faces are found by yunet"):
        assert sum(line in text for text in said) == 1, said
    assert sum(text.startswith(("0.png: ", "1.png: ")) for text in said) == 4, said
    assert sum("No face recognition model found" in text for text in said) == 1
    assert sum("No face parser found, so a mask is an oval" in text for text in said) == 1


def test_photos_that_lack_nothing_are_taken_as_they_are(
    found: Found, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    for folder in folders:
        assert main(["masks", str(folder)]) == 0
    caplog.set_level(logging.INFO, "magicapture")
    messages(caplog)
    for learnable in found():
        assert all(p.face_mask is not None and p.landmarks is not None for p in learnable.photos)
    assert not [text for text in messages(caplog) if "found by" in text or ".png" in text]


def test_a_photo_without_a_face_stops_the_training_unless_it_is_left_out(
    found: Found, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    grey = np.random.default_rng(0).integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8)
    for folder in folders:
        Image.fromarray(grey).save(folder / "tree.png")
    with pytest.raises(InputError, match=r"No face was found in tree.png, tree.png. Take such"):
        found()
    warned = messages(caplog, logging.WARNING)
    assert warned == ["tree.png: leave out: no face was found"] * 2
    for learnable in found("--leave-out"):
        assert learnable.photos.names == ("0.png", "1.png")
    whole, _ = found("--without-masks")
    assert whole.photos.photos[2].face_mask is None


def test_no_face_at_all(
    found: Found, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    for number in (0, 1):
        Image.new("RGB", (SIDE, SIDE), "olive").save(folders[0] / f"{number}.png")
    with pytest.raises(InputError, match=r"No face was found in 0.png, 1.png"):
        found()
    assert "No face was found in any of them." in messages(caplog)
    dogs, _ = found("--without-masks")
    assert [photo.face_mask for photo in dogs.photos] == [None, None]


def test_the_best_face_recognition_model_is_taken_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shared_assets: Path
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    words = ["train", "--base", "x", "--source", "a", "--style", "b", "--out", "x"]
    words += ["--models", str(tmp_path)]
    weights = (shared_assets / "face" / "foamliu_MobileFaceNet.onnx").read_bytes()
    (tmp_path / "w600k_mbf.onnx").write_bytes(weights)
    embedder = embedder_from(parser().parse_args(words))
    assert embedder is not None and embedder.name == "w600k_mbf.onnx"
    assert "w600k_mbf.onnx (licence: non-commercial research); --face-model none" in caplog.text
    caplog.clear()
    assert embedder_from(parser().parse_args([*words, "--face-model", "none"])) is None
    assert not caplog.records


# -- masks ------------------------------------------------------------------------------------


def test_masks_and_landmarks_are_written_in_the_files_own_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    photo = face(0).resize((1700, 1900))
    photo.rotate(90, expand=True).save(folder / "ada.jpg", exif=turned, quality=95)
    sheet = tmp_path / "sheet.png"
    assert main(["masks", str(folder), "--sheet", str(sheet)]) == 0
    assert {f.name for f in folder.iterdir()} == {"ada.jpg", "ada.mask.png", "ada.landmarks.json"}
    mask = Image.open(folder / "ada.mask.png")
    assert (mask.mode, mask.size) == ("L", (1700, 1900))
    points = np.array(json.loads((folder / "ada.landmarks.json").read_text()))
    assert points.shape == (5, 2) and points.max() > 900
    assert all(mask.getpixel((round(x), round(y))) > 240 for x, y in points)
    (read,) = load_folder(folder)
    assert read.landmarks is not None and read.size == (1717, 1536)
    torch.testing.assert_close(
        read.landmarks, torch.tensor(points).float() * (1536 / 1700), atol=0.5, rtol=0
    )
    eyes = ARCFACE_TEMPLATE[:2, 0].diff() / ARCFACE_TEMPLATE[[0, 3], 1].diff()
    found = (points[1, 0] - points[0, 0]) / (points[3, 1] - points[0, 1])
    assert found == pytest.approx(float(eyes) * 1700 / 1900, rel=0.4)
    assert Image.open(sheet).info["prompt"] == "contact sheet of masks"
    assert main(["masks", str(folder), "--sheet", str(sheet)]) == 0


def test_what_the_user_made_is_kept_unless_asked_for(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    folder = folders[0]
    own = Image.new("L", (SIDE, SIDE))
    own.paste(255, (64, 64, 192, 192))
    own.save(folder / "0-mask.png")
    (folder / "masks").mkdir()
    own.save(folder / "masks" / "1.png")
    (folder / "1.landmarks.json").write_text("[[90,100],[160,100],[128,140],[100,170],[150,170]]")
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert main(["masks", str(folder)]) == 0
    assert {f: f.read_bytes() for f in before} == before
    assert {f for f in folder.rglob("*") if f.is_file()} - before.keys() == {
        folder / "0.landmarks.json"
    }
    assert "--overwrite makes it anew" in caplog.text
    assert main(["masks", str(folder), "--overwrite"]) == 0
    changed = {f.name for f, old in before.items() if f.read_bytes() != old}
    assert changed == {"0-mask.png", "1.png", "1.landmarks.json"}
    assert not (folder / "0.mask.png").exists()


def test_masks_of_photos_of_one_name_are_told_apart(tmp_path: Path) -> None:
    face(0).save(tmp_path / "ada.png")
    face(1).save(tmp_path / "ada.jpg")
    face(2).save(tmp_path / "ada face.jpg")
    assert main(["masks", str(tmp_path)]) == 0
    photos = {photo.name: photo for photo in load_folder(tmp_path)}
    assert set(photos) == {"ada.png", "ada.jpg", "ada face.jpg"}
    for photo in photos.values():
        assert photo.face_mask is not None and photo.landmarks is not None
        points = photo.landmarks.round().long()
        assert (photo.face_mask[0, points[:, 1], points[:, 0]] > 0.9).all()


def test_masks_without_a_face(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (SIDE, SIDE), "olive").save(tmp_path / "0.png")
    assert main(["masks", str(tmp_path)]) == 2
    assert "No face was found in any photo of" in caplog.text
    assert [f.name for f in tmp_path.iterdir()] == ["0.png"]


# -- labels ----------------------------------------------------------------------------------------


def test_labels_are_shown_before_training(folders, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    source, style = map(str, folders)
    sheet, out = tmp_path / "sheet.png", tmp_path / "labels"
    words = ["labels", "--source", source, "--style", style, "--sheet", str(sheet)]
    words += ["--out", str(out), "--resolution", "256", "--seam", "1", "--photos", "2"]
    assert main([*words, "--nearness", "10"]) == 0
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "4 of 4 labels show the person" in said and "the mask is an oval" in said
    assert len(list(out.glob("*.png"))) == 4 and Image.open(sheet).size[0] > 256
    caplog.clear()
    assert main([*words, "--nearness", "0"]) == 0
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "0 of 2 labels show the person" in said
    assert "no photo is near in pose: its own face stays and is not taught" in said


def test_labels_say_what_is_wrong_with_a_setting(folders, capsys, caplog) -> None:
    source, style = map(str, folders)
    assert main(["labels", "--source", source, "--style", style, "--photos", "0"]) == 2
    assert "--photos" in capsys.readouterr().err + caplog.text
