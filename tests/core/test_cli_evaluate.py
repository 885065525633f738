"""`magicapture evaluate` on files: what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from magicapture.cli import main
from magicapture.faces import models, trial

DRAWN = Image.open(Path(trial.__file__).with_name("drawn_faces.jpg"))
"""Four drawn faces, of 128 px."""

Command = Callable[..., list[str]]


def face(number: int, side: int = 256) -> Image.Image:
    x, y = 128 * (number % 2), 128 * (number // 2)
    return DRAWN.crop((x, y, x + 128, y + 128)).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGICAPTURE_MODELS", raising=False)
    monkeypatch.setattr(models, "find_spec", lambda _: None)  # packages that bring models


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A person of two photos, a style of two, and two folders of pictures."""
    for folder, numbers in (("ada", (0, 1)), ("noir", (2, 3)), ("new", (3, 1)), ("old", (2,))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            face(number).save(tmp_path / folder / f"{number}.png")
    Image.new("RGB", (90, 60), "olive").save(tmp_path / "new" / "tree.png")
    (tmp_path / "new" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (tmp_path / "new" / "3.txt").write_text("a woman in the rain")

    def words(*more: object, pictures: tuple[str, ...] = ("new", "old")) -> list[str]:
        given = [str(tmp_path / name) for name in pictures]
        own = {"person": "ada", "style": "noir", "out": "out"}
        options = [f"--{name}={tmp_path / path}" for name, path in own.items()]
        return ["evaluate", *given, *options, "--device=cpu", *map(str, more)]

    return words


@pytest.fixture
def clip(tmp_path: Path, tokenizer: CLIPTokenizer) -> Path:
    """A tiny whole CLIPModel in one file."""
    small = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer)},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    file = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in CLIPModel(config).state_dict().items()}, file)
    return file


def error(caplog: pytest.LogCaptureFixture) -> str:
    (found,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    caplog.clear()
    return found


def test_folders_stand_beside_each_other_in_three_files(
    command: Command, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    head = tmp_path / "head.safetensors"
    save_file({"weight": torch.rand(1, 16), "bias": torch.rand(1)}, head)
    more = ("--clip", clip, "--aesthetic", head, "--prompt", "a woman", "--by-skin-tone")
    assert main(command(*more)) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "evaluation.csv",
        "evaluation.html",
        "evaluation.json",
    ]
    told = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert told["made_by"] == "magicapture evaluate"
    assert [p["name"] for p in told["pictures"]] == ["1.png", "3.png", "tree.png", "2.png"]
    assert told["missing"] == ["identity, CSIM: there is no face recognition model."]
    assert {"style", "aesthetic", "diversity", "copies", "obedience"} <= set(told["columns"])
    assert told["pictures"][0]["copies"] == 1 and told["pictures"][2]["notes"] == ["no face"]
    asked = [p["obedience"] for p in told["pictures"]]
    assert asked[0] != asked[1], "the second has a prompt of its own"
    assert "torn.png" in told["lost"]["new"][0]
    with (out / "evaluation.csv").open(newline="") as file:
        assert [line["group"] for line in csv.DictReader(file)] == ["new"] * 3 + ["old"]
    for said in ("Left out: identity, CSIM", "new, tree.png: no face is found", "Wrote "):
        assert said in caplog.text
    assert main(command(pictures=("old",))) == 0, "its own files may be written anew"
    told = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert "style" not in told["columns"] and len(told["pictures"]) == 1
    assert told["missing"][1].startswith("style, diversity, aesthetic, obedience: there is no CLIP")


def test_what_cannot_be_used_is_said(
    command: Command, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(words: list[str]) -> str:
        assert main(words) == 2
        return error(caplog)

    assert "does not exist" in refused(command(pictures=("nowhere",)))
    (tmp_path / "empty").mkdir()
    assert "has no photo" in refused(command(pictures=("empty",)))
    assert "--prompt: expected a text" in refused(command("--prompt", " "))
    assert "without the CLIP model" in refused(
        command("--aesthetic", _saved(tmp_path / "a.safetensors"))
    )
    assert "no folder of a CLIP model" in refused(command("--clip", tmp_path / "ada"))
    assert "--device" in refused(command("--clip", clip, "--device", "nowhere"))
    for file in (tmp_path / "new").iterdir():
        file.write_bytes(b"")
    assert "no picture to measure" in refused(command(pictures=("new",)))
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "evaluation.html").write_text("mine")
    assert "exists without evaluation.json" in refused(command(pictures=("old",)))
    (tmp_path / "out" / "evaluation.json").write_text("{}")
    assert "did not write it" in refused(command(pictures=("old",)))
    assert (tmp_path / "out" / "evaluation.html").read_text() == "mine"


def _saved(file: Path) -> Path:
    save_file({"weight": torch.rand(1, 16)}, file)
    return file


def test_another_face_model_than_the_trainings_is_taken(
    command: Command, tmp_path: Path, shared_assets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    weights = (shared_assets / "face" / "foamliu_MobileFaceNet.onnx").read_bytes()
    (tmp_path / "w600k_mbf.onnx").write_bytes(weights)
    words = command("--models", tmp_path, "--loss-face-model", tmp_path / "w600k_mbf.onnx")
    photos = tmp_path / "ada"
    face(0, 200).save(photos / "1.png")  # the same person twice
    assert main(words) == 0
    assert "WARNING: the identity loss used it too" in caplog.text
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert told["face_model_of_the_loss"] is True and "identity" in told["columns"]
