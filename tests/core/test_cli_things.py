"""Things on the command line: masks from anywhere, no face finder, DINO named or found."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import magicapture.cli.faces
import magicapture.cli.keeping
from magicapture.adapters import load_adapter
from magicapture.batch import Job, Worker
from magicapture.cli import main
from magicapture.cli.batch_jobs import TrainLoader
from magicapture.paperdoll.weights import model_folder


def write(folder: Path, *, alpha: bool = False, masks: bool = False, count: int = 2) -> Path:
    """Pictures of a bright disc on noise; cut out, or with masks beside them."""
    folder.mkdir()
    random = np.random.default_rng(len(folder.name))
    for i in range(count):
        picture = Image.fromarray(random.integers(0, 90, (128, 128, 3), dtype=np.uint8))
        disc = Image.new("L", (128, 128))
        ImageDraw.Draw(disc).ellipse((30, 20 + i, 90, 100 + i), fill=255)
        picture.paste((230, 180, 60), mask=disc)
        if alpha:
            picture.putalpha(disc)
        if masks:
            disc.save(folder / f"{i}.mask.png")
        picture.save(folder / f"{i}.png")
    return folder


@pytest.fixture
def no_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a face finder fails."""

    def asked(*given: object) -> None:
        raise AssertionError("a thing has no face")

    for module in (magicapture.cli.faces, magicapture.cli.keeping):
        for name in ("detector_from", "parser_from", "load_face_embedder"):
            monkeypatch.setattr(module, name, asked)


@pytest.fixture
def dino_folder(tiny, tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "dino"
    folder.mkdir(parents=True)
    torch.save(tiny.dino_weights(), folder / "dino_deitsmall8_pretrain.pth")
    return tmp_path / "models"


def command(tmp_path: Path, source: Path, *more: str) -> list[str]:
    style = tmp_path / "style"
    style = style if style.is_dir() else write(style)
    words = ["train", "--recipe", "things", "--class-word", "toy", "--steps", "2"]
    words += ["--base", str(model_folder()), "--resolution", "128", "--set", "variants=1"]
    words += ["--source", str(source), "--style", str(style), "--bundle"]
    return [*words, "--out", "rex", "--out-dir", str(tmp_path / "out"), *more]


@pytest.mark.parametrize("kind", ["alpha", "masks"])
def test_a_thing_is_trained_without_a_face(kind, tmp_path, dino_folder, no_faces, caplog) -> None:
    caplog.set_level(logging.INFO)
    source = write(tmp_path / "rex", **{kind: True})
    words = command(tmp_path, source, "--models", str(dino_folder))
    if kind == "masks":
        words += ["--keep", "1", "--keep-seeds", "1", "--choose", "identity"]
    assert main(words) == 0
    adapter = load_adapter(tmp_path / "out" / "rex.safetensors")
    assert adapter.recipe is not None and adapter.recipe.subject_is == "thing"
    assert "compared by dino_deitsmall8_pretrain.pth" in caplog.text
    if kind == "masks":
        (kept,) = json.loads((tmp_path / "out" / "rex-checkpoints.json").read_text())["checkpoints"]
        assert "identity" in kept["means"] and "faces" not in kept["means"]
        assert main([*words, "--judge-model", "faces.onnx"]) == 2
        assert "learns a thing: DINO compares it" in caplog.text
    if kind == "alpha":  # the others are not planned
        assert "Training needs about" in caplog.text


def test_a_job_of_a_batch_learns_a_thing_as_train_does(tmp_path, dino_folder, no_faces) -> None:
    source = write(tmp_path / "rex", alpha=True)
    words = command(tmp_path, source, "--models", str(dino_folder))
    assert main(words) == 0
    job = Job("rex", tuple(words[1:]), "")
    worker = Worker(TrainLoader, str(tmp_path / "results"), pictures=False)
    worker.check(job)
    assert worker.train(job, 1).files == ("rex.safetensors",)
    one, other = (
        load_file(tmp_path / place)
        for place in ("results/rex/rex.safetensors", "out/rex.safetensors")
    )
    assert one.keys() == other.keys() and all(v.equal(other[k]) for k, v in one.items())


def test_what_is_missing_is_said_before_the_base_model_is_read(
    tmp_path, dino_folder, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "rex", alpha=True)
    broken = command(tmp_path, source, "--base", "nowhere", "--models", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    assert main(broken) == 2
    assert "Put dino_vitbase8_pretrain.pth into models/dino" in capsys.readouterr().err
    bare = command(tmp_path, write(tmp_path / "bare"), "--base", "nowhere")
    assert main([*bare, "--models", str(dino_folder)]) == 2
    assert "no mask of the thing. Give one: NAME.mask.png" in capsys.readouterr().err


def test_without_dino_both_are_learned_each_alone(tmp_path, no_faces) -> None:
    names = ("dino_structure", "dino_patches", "dino_style")
    off = [word for n in names for word in ("--set", f"phases[*].weights.{n}=0")]
    assert main(command(tmp_path, write(tmp_path / "rex", masks=True), *off)) == 0


def salient(path: Path, side: int = 320) -> Path:
    """An ONNX file with the inputs of U^2-Net whose map is how red a pixel is."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.float32([1, 0, 0]).reshape(1, 3, 1, 1), "w")
    shape = [1, 3, side, side]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "salient",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, side, side])],
        [weight],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def test_masks_by_rembg_with_a_file_of_the_users(tmp_path, caplog, monkeypatch) -> None:
    pytest.importorskip("rembg", reason="rembg is not installed")
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("REMBG_HOME", str(tmp_path))  # newer ones read files in their folder alone
    folder, model = write(tmp_path / "rex"), salient(tmp_path / "u2net.onnx")
    assert main(["masks", str(folder), "--cut-out", str(model)]) == 0
    for i in range(2):
        mask = np.asarray(Image.open(folder / f"{i}.mask.png")) > 127
        true = np.asarray(Image.open(folder / f"{i}.png").convert("RGB"))[..., 0] > 200
        assert (mask & true).sum() / (mask | true).sum() > 0.95
    before = (folder / "0.mask.png").read_bytes()
    Image.new("L", (128, 128), 255).save(folder / "1.mask.png")
    assert main(["masks", str(folder), "--cut-out", str(model)]) == 0
    assert "your own mask; left as it is" in caplog.text
    assert (folder / "0.mask.png").read_bytes() == before


def test_what_cannot_cut_out(tmp_path, capsys) -> None:
    folder = write(tmp_path / "rex")
    assert main(["masks", str(folder), "--cut-out", str(tmp_path / "u2net.onnx")]) == 2
    assert "There is no file" in capsys.readouterr().err
    model = salient(tmp_path / "other.onnx", 512)
    assert main(["masks", str(folder), "--cut-out", str(model)]) == 2
    told = capsys.readouterr().err
    assert "needs rembg" in told or "cannot be used to cut out; expected U^2-Net's" in told
    assert not list(folder.glob("*.mask.png"))
