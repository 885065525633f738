"""Where model files are looked for, and what is said of missing ones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from magicapture.errors import InputError, StorageError
from magicapture.faces import packages
from magicapture.faces.detect import load_detector
from magicapture.faces.find import best, files, inventory, locate, missing, places
from magicapture.faces.models import TITLES
from magicapture.faces.registry import folders, model_files
from magicapture.faces.square import SquareDetector

MODELS = [(role, file) for role in TITLES for file in model_files(role)]
SHIPPED = "yunet_s.safetensors"


@pytest.fixture(autouse=True)
def _no_package_brings_a_file(monkeypatch) -> None:
    monkeypatch.setattr("magicapture.faces.models.find_spec", lambda module: None)


@pytest.fixture
def models(tmp_path) -> Path:
    """A folder laid out as ComfyUI's, with names that say what the files are."""
    for name in (
        "insightface/models/buffalo_l/w600k_r50.onnx",
        "insightface/models/buffalo_l/det_10g.onnx",
        "insightface/models/antelopev2/antelopev2/glintr100.onnx",
        "facexlib/parsing_parsenet.pth",
        "facexlib/detection_Resnet50_Final.pth",
        "facexlib/mine.onnx",
        "facexlib/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_of_a_role_best_first(models) -> None:
    where = places(models)
    assert list(files("detector", where)) == [
        "models/buffalo_l/det_10g.onnx",
        "detection_Resnet50_Final.pth",
        SHIPPED,
        "mine.onnx",
    ]
    assert best("embedder", where).name == "glintr100.onnx"
    assert best("parser", where).name == "parsing_parsenet.pth"


def test_torchscript_is_never_taken_unasked(models) -> None:
    """Under a name of the table it would run its code, which nobody asked for."""
    for old in models.rglob("*.onnx"):
        old.unlink()
    file = models / "facexlib" / "recognition_arcface_ir_se50.pth"
    torch.jit.script(nn.Identity()).save(str(file))
    with pytest.raises(StorageError, match=r"no face recognition model.*"):
        best("embedder", places(models))
    assert list(files("embedder", places(models))) == [file.name]  # for the user to name
    torch.save({"weight": torch.ones(1)}, file)
    assert best("embedder", places(models)) == file


def test_the_best_of_another_network_where_there_is_one(models) -> None:
    first = best("embedder", places(models))
    copy = models / "insightface" / "glintr100.onnx"
    copy.touch()  # the same network again is no other one
    assert best("embedder", places(models), other_than=first).name == "w600k_r50.onnx"
    (parser := best("parser", places(models))).with_name("mine.pth").touch()
    assert best("parser", places(models), other_than=parser) == parser
    unknown = models / "my_own.onnx"
    assert best("embedder", places(models), other_than=unknown).name == "glintr100.onnx"


def test_a_missing_role_says_what_where_and_under_which_licence(models) -> None:
    with pytest.raises(StorageError) as caught:
        best("restorer", places(models))
    text = str(caught.value)
    for role, model in MODELS:
        assert (model.file in text) == (role == "restorer")
    assert "facerestore_models" in text and "licence" in text and str(models) in text
    # The freest first, with where it is published; where the best is comes after.
    assert text.startswith("There is no face restorer. Put RestoreFormer.pth into models/facer")
    assert "https://github.com/TencentARC/GFPGAN" in text.splitlines()[0]


def test_a_detector_comes_with_the_pack(models, tmp_path_factory) -> None:
    for where in ({}, places(tmp_path_factory.mktemp("empty"))):
        assert list(files("detector", where)) == [SHIPPED]
        assert isinstance(load_detector(best("detector", where)), SquareDetector)
        assert f"found    {SHIPPED}: " in inventory(where)
    assert SHIPPED not in files("parser", places(models))
    assert SHIPPED not in str(missing("detector", places(models)))  # nothing to get
    mine = models / "facexlib" / SHIPPED
    mine.touch()
    assert files("detector", places(models))[SHIPPED] == mine
    notice = best("detector", {}).with_name("NOTICE.txt").read_text("utf-8")
    assert SHIPPED in notice and best("detector", {}).with_name("LICENSE.txt").is_file()


def test_a_file_whose_packages_are_missing_is_the_last_choice(models, monkeypatch) -> None:
    where, absent = places(models), {"insightface"}
    monkeypatch.setattr(
        packages, "find_spec", lambda name: None if name in absent else find_spec(name)
    )
    assert best("detector", where).name == "detection_Resnet50_Final.pth"
    absent |= {"facexlib", "onnx2torch"}
    assert best("detector", where).name == SHIPPED
    assert best("embedder", where).name == "glintr100.onnx"  # whose loader says what to install
    (models / "facexlib" / "mine_yunet.onnx").touch()
    assert best("detector", where).name == "mine_yunet.onnx"
    absent.add("onnx")
    assert best("detector", where).name == SHIPPED


def test_the_inventory_names_found_and_missing(models) -> None:
    report = inventory(places(models))
    for _, model in MODELS:
        (line,) = (x for x in report.splitlines() if f" {model.file}" in x)
        there = model.shipped or model.file in {path.name for path in models.rglob("*")}
        assert line.strip().startswith("found" if there else "missing")
    assert "Face recognition model: tells people apart" in report and "embedder" not in report


def test_the_folder_of_models(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MAGICAPTURE_MODELS", raising=False)
    with pytest.raises(StorageError, match=r"Looked in no folder.*MAGICAPTURE_MODELS"):
        best("parser", places())
    with pytest.raises(InputError, match="does not exist"):
        places(tmp_path / "gone")
    (tmp_path / "yunet.onnx").touch()
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path))
    assert best("detector", places()) == tmp_path / "yunet.onnx"


def test_links_to_folders_are_followed_once(models, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "pack").mkdir()
    (elsewhere / "pack" / "face_detection_yunet_2023mar.onnx").touch()
    (elsewhere / "pack" / "again").symlink_to(elsewhere)  # leads back
    (models / "facedetection").symlink_to(elsewhere)
    (models / "facexlib" / "shared").symlink_to(elsewhere / "pack")
    (models / "facexlib" / "gone.onnx").symlink_to(elsewhere / "nothing")
    found = list(files("detector", places(models)))
    assert found == [
        "models/buffalo_l/det_10g.onnx",
        "detection_Resnet50_Final.pth",
        "pack/face_detection_yunet_2023mar.onnx",
        "shared/face_detection_yunet_2023mar.onnx",
        SHIPPED,
        "mine.onnx",
    ]
    (yunet,) = (file for _, file in MODELS if file.is_called("yunet.onnx"))
    assert len(locate(yunet, places(models))) == 2


def test_comfyuis_own_folder_gives_what_is_ours_alone(models) -> None:
    """models/detection holds what ComfyUI's own nodes run: MediaPipe, and others to come."""
    shared = models / "detection"
    shared.mkdir()
    for name in ("face_landmarker.safetensors", "mediapipe_face.safetensors"):
        save_file({"detector.backbone.0.weight": torch.zeros(1)}, shared / name)
    for name in ("face_landmarker.pth", "yolo_face.onnx", "blazeface.pt", "notes.safetensors"):
        (shared / name).touch()
    before = {role: list(files(role, places(models))) for role in TITLES}
    assert not any("/" not in name and (shared / name).exists() for name in before["detector"])
    for role in TITLES:
        assert not {path.parent for path in files(role, places(models)).values()} & {shared}
    (shared / "face_detection_yunet_2023mar.onnx").touch()
    save_file({"module.body.stage1.0.0.weight": torch.zeros(1)}, shared / "retina.safetensors")
    added = set(files("detector", places(models))) - set(before["detector"])
    assert added == {"face_detection_yunet_2023mar.onnx", "retina.safetensors"}
    assert list(files("parser", places(models))) == before["parser"]


def test_weights_of_something_else_are_offered_for_nothing(models) -> None:
    save_file({"detector.weight": torch.zeros(1)}, models / "facexlib" / "mediapipe.safetensors")
    for role in ("detector", "parser", "embedder"):
        assert "mediapipe.safetensors" not in files(role, places(models))


def test_folders_hold_every_known_files(models) -> None:
    assert {file.folder.split("/")[0] for _, file in MODELS} <= set(folders())
    assert "detection" in folders()
