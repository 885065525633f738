"""`magicapture bench` from folders to a report, which goes on after Ctrl-C and names nobody."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from magicapture.backbones.clip_tokenizer import write_tokenizer
from magicapture.bench import load_clip
from magicapture.cli import main
from magicapture.cli.progress import Progress
from magicapture.config import to_dict
from magicapture.faces.content import Content
from magicapture.faces.models import ModelKind
from magicapture.faces.registry import registered_model
from magicapture.faces.square import SquareDetector
from magicapture.recipes import recipe
from magicapture.training import Event, Stepped

SIDE = 128
POINTS = [[22, 27], [38, 27], [30, 35], [24, 43], [36, 43]]  # as in faces/drawn_faces.jpg

Command = Callable[..., list[str]]


def find_in_the_middle(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One face where the ellipses are, whatever the picture shows; none in a plain one."""
    if picture.std() < 1:
        return np.empty((0, 15), np.float32)
    points = np.array(POINTS, np.float32) * (len(picture) / SIDE)
    corners = points.min(0) - 10, points.max(0) + 10
    return np.array([[*corners[0], *corners[1], *points.ravel(), 0.9]], np.float32)


def load_toy(content: Content) -> SquareDetector:
    return SquareDetector(find_in_the_middle, sides=(320,))


TOY = ModelKind(
    "detector",
    "Toy",
    files=(),
    endings=(".safetensors",),
    recognises=lambda content: "toy.nothing" in content.names,
    load=load_toy,
)
"""A detector that costs nothing, and finds what an untrained model draws to be a face."""


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MAGICAPTURE_MODELS", raising=False)
    with registered_model(TOY):
        yield


def write_alike(folder: Path, count: int, seed: int) -> None:
    """Pictures that are much alike, with an ellipse for a face and its landmarks."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    small = random.integers(0, 255, (8, 8, 3))
    for index in range(count):
        noisy = np.clip(small + random.integers(-25, 25, small.shape), 0, 255).astype(np.uint8)
        picture = Image.fromarray(noisy).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.png")
        mask = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(mask).ellipse((6, 6, 54, 64), fill=255)
        mask.save(folder / f"{index}.mask.png")
        (folder / f"{index}.landmarks.json").write_text(json.dumps(POINTS))


def write_embedder(path: Path, seed: int) -> Path:
    """A tiny face embedder in TorchScript."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 9, 8), nn.Tanh(), nn.Flatten(), nn.Linear(676, 16))
    torch.jit.trace(network.eval(), torch.rand(2, 3, 112, 112)).save(path)
    return path


@pytest.fixture
def command(base: Path, tmp_path: Path) -> Command:
    """The words of a tiny bench; keywords change an option, None leaves it out."""
    for number, name in enumerate(("secret ada", "secret bo")):
        write_alike(tmp_path / "faces" / name, 6, number)
    for number, name in enumerate(("secret noir", "secret oil")):
        write_alike(tmp_path / "styles" / name, 4, 10 + number)
    recipes = tmp_path / "magicapture.json", tmp_path / "dreambooth.json"
    for file in recipes:
        file.write_text(json.dumps(to_dict(replace(recipe(file.stem), variants=1))))
    save_file({"toy.nothing": torch.zeros(1)}, tmp_path / "toy.safetensors")
    options = {
        "base": base,
        "faces": tmp_path / "faces",
        "styles": tmp_path / "styles",
        "recipes": ",".join(map(str, recipes)),
        "detector": tmp_path / "toy.safetensors",
        "face_model": write_embedder(tmp_path / "loss.pt", 1),
        "judge_model": write_embedder(tmp_path / "judge.pt", 2),
        "out": tmp_path / "out",
        "steps": 3,
        "resolution": SIDE,
        "pictures": 2,
        "edit_pictures": 1,
        "edit": "smiling",
        "draw_steps": 2,
        "device": "cpu",
    }

    def words(*more: str, **changes: object) -> list[str]:
        given = {k: v for k, v in {**options, **changes}.items() if v is not None}
        flags = ([f"--{k.replace('_', '-')}", str(v)] for k, v in given.items())
        return ["bench", *(word for flag in flags for word in flag), *more]

    return words


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The folder of a tiny CLIP model."""
    folder = tmp_path / "clip"
    write_tokenizer(folder)
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = CLIPConfig(
        text_config={**small, **ids, "vocab_size": 49408},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def report(out: Path) -> dict[str, object]:
    return json.loads((out / "report.json").read_text("utf-8"))


def error(caplog: pytest.LogCaptureFixture) -> str:
    """The one error since the last call."""
    (found,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    caplog.clear()
    return found


@pytest.mark.slow
def test_a_stopped_bench_goes_on_and_its_report_names_nobody(
    command: Command,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "magicapture")
    show, steps = Progress.__call__, []

    def stop_in_the_second(progress: Progress, event: Event) -> None:
        show(progress, event)
        if isinstance(event, Stepped):
            steps.append(event.step)
            if len(steps) == 5:
                raise KeyboardInterrupt

    words = command(clip=clip, title="tiny")
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", stop_in_the_second)
        assert main(words) == 130
    assert "Stopped. The same command goes on from there" in caplog.text
    (first,) = report(tmp_path / "out")["lines"]
    caplog.clear()

    assert main(words) == 0
    assert "Going on after step 2 of 3" in caplog.text
    assert "Training 2 of 4" in caplog.text and "Training 1 of 4" not in caplog.text
    found = report(tmp_path / "out")
    assert found["lines"][0] == first
    done = [(x["person"], x["style"], x["recipe"], x["seed"]) for x in found["lines"]]
    assert done == [(n, n, recipe, 0) for n in (1, 2) for recipe in ("magicapture", "dreambooth")]
    check_report(found)
    check_page(tmp_path / "out" / "report.html", pictures=6)
    assert not list((tmp_path / "out" / "states").iterdir())
    text = (tmp_path / "out" / "report.json").read_text("utf-8")
    for name in ("secret", str(tmp_path), Path.home().name + "/", "loss.pt", "judge.pt"):
        assert name not in text + (tmp_path / "out" / "report.html").read_text("utf-8")

    trained = []
    monkeypatch.setattr(Progress, "__call__", lambda _, event: trained.append(event))
    assert main(words) == 0 and not trained, "a finished bench trains nothing"
    assert (tmp_path / "out" / "report.json").read_text("utf-8") == text
    more = command("--no-pictures", clip=clip, title="tiny", seeds=2, people=1)
    assert main(more) == 0
    assert [x["seed"] for x in report(tmp_path / "out")["lines"]] == [0] * 4 + [1] * 2
    check_page(tmp_path / "out" / "report.html", pictures=0)

    caplog.clear()
    assert main(command(title="tiny")) == 2
    assert "is of a bench with another clip" in error(caplog)
    assert main(command(clip=clip, title="tiny", steps=4)) == 2
    assert "has a line for magicapture, person 1 in style 1, seed 0 from other" in error(caplog)
    assert main(command("--fresh", people=1, recipes="textual-inversion")) == 0
    assert len(report(tmp_path / "out")["lines"]) == 1
    assert json.loads((tmp_path / "out" / "report.json.bak1").read_text("utf-8"))["lines"]


def test_a_recipe_that_fails_is_a_line_and_is_tried_again(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "unfit.json"
    unfit = recipe("magicapture")
    unfit = replace(unfit, refocus=replace(unfit.refocus, factors=(64,)))
    file.write_text(json.dumps(to_dict(replace(unfit, name="unfit", variants=1))))
    for _ in range(2):
        assert main(command(people=1, recipes=file)) == 0
        assert "unfit, person 1 in style 1, seed 0 failed: No attention layer" in caplog.text
        caplog.clear()
    (line,) = report(tmp_path / "out")["lines"]
    assert line["failed"] in ("InputError", "UnsupportedModelError") and "scores" not in line
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "0 trainings" in page and "Failed: unfit" in page


def check_report(found: dict[str, object]) -> None:
    """The form that docs/bench.md describes."""
    assert (found["made_by"], found["schema"]) == ("magicapture bench", 1)
    assert set(found) == {
        *("made_by", "schema", "setup", "columns", "recipes", "pairs", "means", "differences"),
        "lines",
    }
    setup = found["setup"]
    assert set(setup) == {"machine", "precision", "base", "faces", "clip", "drawing"}
    assert setup["precision"] == "float32" and setup["base"]["title"] == "tiny"
    assert setup["faces"]["loss"]["hash"] != setup["faces"]["judge"]["hash"]
    assert len(found["recipes"]["dreambooth"]["phases"]) == 1
    assert [pair["photos"] for pair in found["pairs"]] == [[5, 1], [5, 1]]
    for line in found["lines"]:
        scores, cost = line["scores"], line["cost"]
        assert {"identity", "style", "both", "portraits", "collapse", "copies"} < scores.keys()
        assert {"nearest", "faces", "style_clip"} < scores.keys()
        assert all(len(values) == 2 for values in scores.values())
        assert cost["steps"] == 3 and cost["step_seconds"] > 0 and cost["picture_seconds"] > 0
        assert cost["train_gpu_mib"] is None and cost["train_process_mib"] > 100
        assert [edit["words"] for edit in line["edits"]] == setup["drawing"]["edits"]
        assert all(len(edit["scores"]["identity"]) == 1 for edit in line["edits"])
    stopped = [line["cost"]["train_seconds"] is None for line in found["lines"]]
    assert stopped == [False, True, False, False], "the time of a stopped training is not known"
    for name in ("magicapture", "dreambooth"):
        styles = [
            sum(line["scores"]["style"]) / 2 for line in found["lines"] if line["recipe"] == name
        ]
        mean, low, high = found["means"][name]["style"]
        assert mean == pytest.approx(sum(styles) / 2, abs=1e-3) and low <= mean <= high
    assert found["differences"]["dreambooth"]["style"] is not None


def check_page(file: Path, pictures: int) -> None:
    """It asks for nothing from outside, and its pictures are in it."""
    page = file.read_text("utf-8")
    assert "default-src 'none'; img-src data:" in page
    assert set(re.findall(r"\b(?:src|href|url)\s*[=(]\s*[\"']?(\w*)", page)) <= {"data"}
    assert "<script" not in page and "@import" not in page and "http-equiv" in page
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(data) == pictures
    for one in data:
        with Image.open(io.BytesIO(base64.b64decode(one)), formats=["JPEG"]) as picture:
            assert picture.height == 176 and picture.width % 176 == 0
    for tag in ("table", "h2", "dl", "details", "body"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>") > 0


BAD = {
    "no faces": ({"faces": None}, "--faces is missing. A bench needs photos of several people"),
    "no styles": ({"styles": None}, "--styles is missing"),
    "no such folder": ({"faces": "nowhere"}, "--faces: there is no folder nowhere"),
    "no people": ({"faces": "faces/secret ada"}, "expected one for each person"),
    "no such recipe": ({"recipes": "magicapture,magic"}, "--recipe: There is no recipe 'magic'"),
    "no recipe": ({"recipes": " , "}, "--recipes: expected one or more"),
    "one network twice": ({"judge_model": "loss.pt"}, "loss.pt would be both in the loss and the"),
    "no CLIP": ({"clip": "faces"}, "--clip: "),
    "no judge": ({"judge_model": "nowhere.onnx"}, "nowhere.onnx"),
    "no pictures": ({"pictures": 0}, "--pictures: expected 1 to 1000, got 0"),
    "few photos": ({"photos": 2}, "--photos: expected 4 to 20, got 2"),
    "steps of a drawing": ({"draw_steps": 1}, "steps: expected 2 to 1000, got 1"),
    "steps": ({"steps": 1}, "--steps: 1 steps are too few"),
    "no word": ({"class_word": " "}, "--class-word: expected a text"),
    "no base": ({"base": "missing.safetensors"}, "missing.safetensors"),
}


@pytest.mark.parametrize(("changes", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_told_before_anything_is_trained(
    changes: dict[str, object],
    named: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(**changes)) == 2
    assert named in error(caplog)
    assert not (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / "states").exists()


def test_sets_that_do_not_serve_are_named(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (tmp_path / "faces" / "secret bo").glob("[0-2].*"):
        file.unlink()
    assert main(command()) == 2
    assert "secret bo has 3 pictures in which a face is found; expected 4" in error(caplog)
    assert main(command(people=1, styles=tmp_path / "faces" / "secret ada", seeds=0)) == 2
    assert "--seeds: expected 1 to 100, got 0" in error(caplog)
    for number in range(4):  # four that have nothing in common
        write_alike(tmp_path / "mixed" / str(number), 1, 50 + number)
        for file in (tmp_path / "mixed" / str(number)).iterdir():
            file.rename(tmp_path / "mixed" / file.name.replace("0", str(number), 1))
        (tmp_path / "mixed" / str(number)).rmdir()
    assert main(command(people=1, styles=tmp_path / "mixed")) == 2
    assert "the portraits are alike by" in error(caplog)


def test_a_file_in_the_way_is_left_alone(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "report.json"
    for mine in ("mine", "{}", '{"made_by": "magicapture doctor"}'):
        file.write_text(mine)
        for more in ((), ("--fresh",)):
            assert main(command(*more, base="missing")) == 2
            assert "is no report of `magicapture bench`" in error(caplog)
            assert file.read_text() == mine


def test_the_best_found_is_never_loss_and_judge_at_once(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture, shared_assets: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    weights = shared_assets / "face" / "foamliu_MobileFaceNet.onnx"
    shutil.copy(weights, models / "w600k_mbf.onnx")
    words = command(face_model=None, judge_model=None, models=models)
    if main([*words, "--recipes", "magic"]) != 2:
        raise AssertionError
    caplog.clear()
    assert main(words) == 2
    message = error(caplog)
    assert "w600k_mbf.onnx would be both" in message and "[free-faces]" in message
    shutil.copy(weights, models / "glintr100.onnx")  # under another name, the same network
    assert main(words) == 2
    assert "glintr100.onnx would be both" in error(caplog)


def test_clip_tells_pictures_apart(clip: Path) -> None:
    model = load_clip(clip)
    images = torch.rand(3, 3, 40, 40)
    found = model.of_images(images)
    assert found.shape == (3, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model.of_images(images[1:2]), found[1:2], atol=1e-5, rtol=0)
    assert not torch.equal(model.of_text("red"), model.of_text("blue"))
    pixels = (images[:1] - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]) / (
        torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    )
    pixels = nn.functional.interpolate(
        pixels, (32, 32), mode="bicubic", antialias=True, align_corners=False
    )
    near = model.model.get_image_features(pixel_values=pixels)
    near = near if isinstance(near, torch.Tensor) else near.pooler_output
    assert float(torch.cosine_similarity(near, found[:1])) > 0.99
