"""A further kind of detector through the public seam alone, and what derives from the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from magicapture.errors import InputError, MagiCaptureError, StorageError
from magicapture.faces import registry, trial
from magicapture.faces.content import Content
from magicapture.faces.detect import load_detector
from magicapture.faces.find import best, files, inventory, missing, places
from magicapture.faces.models import TITLES, ModelFile, ModelKind
from magicapture.faces.registry import registered_model
from magicapture.faces.square import SquareDetector

SHIPPED = best("detector", {})


def load(content: Content) -> SquareDetector:
    """Says that there is a face where one is drawn in the trial, if it is brighter than learned."""
    threshold = float(content.weights["toy.threshold"])

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        if picture.std() < 1:
            return np.empty((0, 15), np.float32)
        x, y = (60.0, 70.0) if picture[70, 60].max() > threshold else (0.0, 0.0)
        points = [x - 15, y - 10, x + 15, y - 10, x, y, x - 10, y + 10, x + 10, y + 10]
        return np.array([[x - 40, y - 50, x + 40, y + 50, *points, 0.9]], np.float32)

    return SquareDetector(find)


TOY = ModelKind(
    "detector",
    "Toy (of this test)",
    files=(ModelFile("toy.safetensors", "toys/faces", "this file", "Apache-2.0", rank=1),),
    endings=(".safetensors",),
    packages={"numpy": "numpy"},
    recognises=lambda content: "toy.threshold" in content.names,
    load=load,
)


def write_toy(path: Path, threshold: float = 5.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"toy.threshold": torch.tensor(threshold)}, path)
    return path


def test_a_further_detector_is_found_listed_and_loaded(tmp_path) -> None:
    other = tmp_path / "insightface" / "det_10g.onnx"
    other.parent.mkdir()
    other.touch()
    path = write_toy(tmp_path / "toys" / "toy.safetensors")
    nameless = write_toy(tmp_path / "facexlib" / "mine.safetensors")
    with registered_model(TOY):
        where = places(tmp_path)
        assert best("detector", where) == path
        assert list(files("detector", where).values()) == [path, other, SHIPPED, nameless]
        assert files("parser", where) == {}
        assert f"found    toy.safetensors: {path}" in inventory(where)
        assert "toy.safetensors into models/toys/faces" in str(missing("detector", where))
        assert "Toy (of this test)" in registry.titles("detector")
        assert "models/toys" in registry.homes("detector") and "numpy" in registry.packages()
        for file in (path, nameless):
            assert isinstance(load_detector(file), SquareDetector)
        with pytest.raises(InputError, match="1 faces in a picture of 4 drawn ones, 0 of them"):
            load_detector(write_toy(tmp_path / "blind.safetensors", 300.0))
    assert best("detector", places(tmp_path)) == other
    assert list(files("detector", places(tmp_path)).values()) == [other, SHIPPED]
    with pytest.raises(InputError, match=r"toy\.threshold is no face detector; expected SCRFD"):
        load_detector(path)


def test_a_kind_whose_package_is_missing_says_so(tmp_path) -> None:
    kind = ModelKind(
        "detector",
        "Toy",
        (),
        (".safetensors",),
        {"toy-package": "no_such_module"},
        TOY.recognises,
        TOY.load,
    )
    with registered_model(kind):
        assert "toy-package missing" in inventory({"magicapture": [tmp_path]})
        with pytest.raises(MagiCaptureError, match=r"needs toy-package.*pip install toy-package"):
            load_detector(write_toy(tmp_path / "toy.safetensors"))


def test_what_a_package_raises_of_a_file_is_told_in_words(tmp_path) -> None:
    def load(content: Content) -> SquareDetector:
        raise KeyError("Expected 480")

    kind = ModelKind("detector", "Toy", (), (".safetensors",), {}, TOY.recognises, load)
    with registered_model(kind), pytest.raises(InputError, match=r"looks like Toy.*Expected 480"):
        load_detector(write_toy(tmp_path / "toy.safetensors"))


def test_ranks_and_names_are_no_ones_twice() -> None:
    for role in TITLES:
        ranks = [file.rank for file in registry.model_files(role)]
        assert ranks == sorted(set(ranks))
        for file in registry.model_files(role):
            assert registry.known(file.file) == (role, file) and file.is_called(file.file)
            assert Path(file.file).suffix in registry.endings(role)


def test_the_documents_name_every_kind(repo) -> None:
    page = (repo / "docs" / "faces.md").read_text("utf-8")
    for role in ("detector", "parser", "embedder"):
        name = TITLES[role].removeprefix("face ") if role != "embedder" else TITLES[role]
        assert f"| {name} | {registry.titles(role)} |" in page


def test_a_damaged_header_is_no_file_of_a_role(tmp_path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert list(files("detector", {"magicapture": [tmp_path]}).values()) == [SHIPPED]
    with pytest.raises(StorageError, match="damaged"):
        load_detector(tmp_path / "torn.safetensors")


def test_the_picture_of_the_trial_is_paperdolls() -> None:
    from magicapture.paperdoll import identity_from_seed, pose_from_seed, render, style_from_seed

    with Image.open(trial._PICTURE) as picture:
        sheet = np.asarray(picture, np.float32) / 255
    for seed, corner, middle in zip(
        (21, 30, 45, 46), np.ndindex(2, 2), trial._MIDDLES, strict=True
    ):
        doll = render(identity_from_seed(seed), style_from_seed(seed), pose_from_seed(seed))
        y, x = 128 * np.array(corner)
        drawn = sheet[y : y + 128, x : x + 128].transpose(2, 0, 1)
        assert abs(drawn - doll.image).mean() < 0.04  # as JPEG keeps it
        assert abs(doll.landmarks.mean(0) + np.array([x, y]) - middle).max() < 1
