"""The command line, from folders of pictures to a picture; and what it says of bad input."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import nn

from magicapture.adapters import Adapter, load_adapter, save_adapter
from magicapture.cli import main
from magicapture.cli.progress import Progress
from magicapture.config import Recipe, from_dict, to_dict
from magicapture.faces import trial
from magicapture.files import atomic_write
from magicapture.recipes import RECIPE_NAMES, recipe
from magicapture.training import Event, Stepped, Trainer

SIDE = 128


LANDMARKS = [[50, 50], [78, 50], [64, 64], [54, 80], [74, 80]]


def write_photos(folder: Path, count: int, seed: int, masks: bool = True) -> Path:
    """Smooth random pictures with an ellipse for a face, whose landmarks spare a detector."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        small = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        if masks:
            mask = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(mask).ellipse((34, 20, 94, 100), fill=255)
            mask.save(folder / f"{index}.mask.png")
            (folder / f"{index}.landmarks.json").write_text(json.dumps(LANDMARKS))
    return folder


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    """A tiny face embedder in TorchScript."""
    network = nn.Sequential(nn.Conv2d(3, 4, 9, 8), nn.Tanh(), nn.Flatten(), nn.Linear(676, 16))
    path = tmp_path / "face recognition model.pt"
    torch.jit.trace(network.eval(), torch.rand(2, 3, 112, 112)).save(path)
    return path


Command = Callable[..., list[str]]


@pytest.fixture
def command(base: Path, tmp_path: Path) -> Command:
    """The words of a tiny `train`; keywords change an option, None leaves it out."""
    options = {
        "base": base,
        "source": write_photos(tmp_path / "source", 2, 1),
        "style": write_photos(tmp_path / "style", 2, 2),
        "out": "ada",
        "out_dir": tmp_path / "out",
        "steps": 4,
        "rank": 2,
        "resolution": SIDE,
        "device": "cpu",
    }

    def words(**changes: object) -> list[str]:
        given = {k: v for k, v in {**options, **changes}.items() if v is not None}
        flags = ([f"--{k.replace('_', '-')}", str(v)] for k, v in given.items())
        return ["train", *(word for flag in flags for word in flag)]

    return words


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The error lines since the last call."""
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    caplog.clear()
    return found


def test_train_phrases_then_sample_in_plain_words(
    command: Command, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One LoRA file, no embedding; <ada-1> and the words draw the same picture, refocused too."""
    caplog.set_level(logging.INFO)
    names = {"subject_name": "ada-1", "subject_phrase": "ada lovel", "style_name": "sfumat"}
    assert main(command(vectors=0, **names)) == 0
    out = tmp_path / "out"
    assert [file.name for file in out.rglob("*.safetensors")] == ["ada.safetensors"]
    text = "a photo of ada lovel person in the sfumat style"
    assert caplog.messages[-1] == f"  {text}" and "load it with Load LoRA" in caplog.messages[-2]

    words = ["sample", "--base", base, "--adapter", out / "ada.safetensors", "--device", "cpu"]
    words += ["--steps", 3, "--width", 64, "--height", 64, "--refocus-bias", 9]
    texts = text, "a photo of <ada-1> person in the <sfumat> style"
    for place, prompt in zip(("words", "tokens"), texts, strict=True):
        arguments = [*words, "--out", tmp_path / place, "--prompt", prompt]
        assert main([str(word) for word in arguments]) == 0
    one, other = (Image.open(tmp_path / place / "ada-0001.png") for place in ("words", "tokens"))
    assert np.array_equal(np.asarray(one), np.asarray(other))

    assert main([str(w) for w in [*words, "--out", out, "--prompt", "a photo of <eve>"]]) != 0
    assert "its tokens are <ada-1>, <sfumat>" in errors(caplog)[0]


def test_train_then_sample(command: Command, base: Path, embedder: Path, tmp_path: Path) -> None:
    assert main(command(face_model=embedder, preview_every=2, subject_name="ada-1")) == 0
    out = tmp_path / "out"
    assert load_adapter(out / "ada.safetensors", [out / "embeddings"]).info["face_model"] == (
        embedder.name
    )
    assert load_adapter(out / "ada.safetensors", [out / "embeddings"]).info["base"] == base.stem
    lora = load_file(out / "ada.safetensors")
    assert all(v.abs().max() > 0 for k, v in lora.items() if k.endswith("lora_up.weight"))
    assert {f.stem for f in (out / "embeddings").iterdir()} == {"ada-1", "my-style"}
    previews = sorted(f.name for f in (out / "ada-previews").iterdir())
    assert previews == ["000002-0.png", "000004-0.png"]

    pictures = tmp_path / "pictures"
    words = ["sample", "--base", base, "--adapter", out / "ada.safetensors", "--out", pictures]
    words += ["--steps", 3, "--width", 64, "--height", 96, "--device", "cpu", "--count", 2]
    words += ["--guidance", 30]  # what a small untrained model makes of a token shows in 8 bits
    assert main([str(w) for w in words]) == 0
    assert main([str(w) for w in [*words, "--strength", 0, "--count", 1]]) == 0
    first, second, bare = (Image.open(pictures / f"ada-000{n}.png") for n in (1, 2, 3))
    assert first.size == (64, 96)
    assert "<ada-1> person in the <my-style> style" in first.info["prompt"]
    assert (first.info["seed"], second.info["seed"], bare.info["seed"]) == ("0", "1", "0")
    assert first.info["Software"].startswith("MagiCapture ")
    assert np.any(np.asarray(first) != np.asarray(second))
    assert np.any(np.asarray(first) != np.asarray(bare)), "the LoRA changes nothing"

    region = tmp_path / "region.png"
    half = Image.new("L", (64, 96))
    half.paste(255, (0, 0, 32, 96))  # of none or all, the share outside has no gradient
    half.save(region)
    for more in (["--refocus-bias", 9], ["--refocus-gradient", 0.1]):
        more += ["--refocus-region", region]
        assert main([str(w) for w in [*words, "--count", 1, *more]]) == 0
    for number in (4, 5):
        held = Image.open(pictures / f"ada-000{number}.png")
        assert np.any(np.asarray(first) != np.asarray(held)), "refocusing changes nothing"


def test_the_last_lines_say_what_to_do_next(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = command(steps=2, subject_name="ada-1", out="ada in noir", recipe="textual-inversion")
    assert main(words) == 0
    said = [r.getMessage() for r in caplog.records]
    at = said.index("To draw pictures:")
    assert re.fullmatch(r"Trained 2 steps of textual-inversion in \d\d:\d\d\.", said[at - 4])
    assert [text.partition(" ")[0] for text in said[at - 3 : at]] == ["Wrote"] * 3
    program, *given = shlex.split(said[at + 1])
    assert program == "magicapture"
    small = ["--steps", "2", "--width", "64", "--height", "64", "--out", str(tmp_path / "drawn")]
    assert main([*given, *small]) == 0
    drawn = Image.open(tmp_path / "drawn" / "ada in noir-0001.png")
    assert drawn.info["prompt"] in said[at + 1]
    assert "embedding:ada-1 person" in said[at + 3] and "embedding:my-style" in said[at + 3]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_same_command_goes_on_after_ctrl_c(
    number: signal.Signals,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(command(out="whole", out_dir=tmp_path / "whole")) == 0
    show, pressed = Progress.__call__, []

    def press_ctrl_c(progress: Progress, event: Event) -> None:
        show(progress, event)
        if isinstance(event, Stepped) and event.step == 3:
            pressed.append(number)
            os.kill(os.getpid(), number)

    def press_it_again(file: int) -> None:
        if pressed:
            os.kill(os.getpid(), signal.SIGINT)
        flush(file)

    flush = os.fsync
    # A test run in the background ignores the signal, as its shell asks for.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Progress, "__call__", press_ctrl_c)
            patch.setattr(os, "fsync", press_it_again)  # while the state is saved
            assert main(command()) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Stopped after step 3 of 4. Nothing is lost" in caplog.text
    assert "Traceback" not in caplog.text
    assert not (tmp_path / "out" / "ada.safetensors").exists()
    caplog.clear()
    assert main(command()) == 0
    assert "Going on after step 3 of 4" in caplog.text
    whole = load_file(tmp_path / "whole" / "whole.safetensors")
    resumed = load_file(tmp_path / "out" / "ada.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    caplog.clear()
    assert main([*command(), "--fresh"]) == 0
    assert "Going on" not in caplog.text


BAD = {
    "no source folder": ({"source": "nowhere"}, "nowhere"),
    "the source is a file": ({"source": __file__}, "is a file"),
    "no base model": ({"base": "missing.safetensors"}, "missing.safetensors"),
    "a base model that is none": ({"base": __file__}, "diffusers folder"),
    "no such recipe": ({"recipe": "magic"}, "'magic'"),
    "no such recipe file": ({"recipe": "missing.json"}, "missing.json"),
    "a token name that is none": ({"subject_name": "a da"}, "'a da'"),
    "one name for both": ({"subject_name": "x", "style_name": "x"}, "'x'"),
    "a name that leaves the folder": ({"out": "../ada"}, "'../ada'"),
    "an empty class word": ({"class_word": " "}, "class word"),
    "too few steps": ({"steps": 1}, "1 steps"),
    "rank zero": ({"rank": 0}, "--rank: lora.rank: expected 1 to 512, got 0"),
    "too small a picture": (
        {"resolution": 8},
        "--resolution: resolution: expected 64 to 2048, got 8",
    ),
    "too many vectors": ({"vectors": 99}, "99 vectors"),
    "no face recognition model": ({"face_model": "missing.onnx"}, "missing.onnx"),
    "a face recognition model that is none": ({"face_model": __file__}, "face recognition model"),
    "no small decoder": ({"taesd": "missing"}, "missing"),
    "no such device": ({"device": "abacus"}, "'abacus'"),
}


@pytest.mark.parametrize(("changes", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named_in_one_error(
    changes: dict[str, object],
    named: str,
    command: Command,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(**changes)) == 2
    (message,) = errors(caplog)
    assert named in message
    assert "Traceback" not in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_bad_photos_are_named(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    one = write_photos(tmp_path / "one", 1, 3)
    bare = write_photos(tmp_path / "bare", 2, 4, masks=False)
    broken = write_photos(tmp_path / "broken", 2, 5)
    (broken / "1.png").write_text("not a picture")
    for folder, named in ((tmp_path / "empty", "empty"), (one, "expected 2"), (bare, "mask")):
        assert main(command(source=folder)) == 2
        assert named in errors(caplog)[0]
    assert main(command(style=broken)) == 2
    assert "1.png" in errors(caplog)[0]


def test_a_warning_is_said_once(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_photos(tmp_path / "twice", 2, 6)
    (source / "2.png").write_bytes((source / "1.png").read_bytes())
    (source / "2.mask.png").write_bytes((source / "1.mask.png").read_bytes())
    (source / "notes.csv").write_text("a,b")
    assert main(command(source=source, preview_every=2)) == 0
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for text in ("notes.csv", "counts twice"):
        assert sum(text in line for line in said) == 1, said
    leakages = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Leakage")]
    assert [text.partition(":")[0] for text in leakages] == [
        "Leakage after step 2",
        "Leakage after step 4",
    ]
    assert all("my-person" in text and "my-style" in text and "%" in text for text in leakages)


def test_a_file_of_somebody_else_is_left_alone(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / "out" / "embeddings" / "my-person.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert main(command()) == 2
    assert "my-person.pt" in errors(caplog)[0]
    assert theirs.read_bytes() == b"theirs"


def test_a_folder_that_cannot_be_written_is_named_before_the_photos_are_read(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in its place")
    assert main(command(out_dir=tmp_path / "file", source=tmp_path / "missing")) == 2
    assert "Nothing can be written to" in errors(caplog)[0]


def test_a_disk_that_fails_in_the_end_loses_nothing(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    """The place of the embeddings becomes a file while the training runs."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    embeddings = tmp_path / "out" / "embeddings"
    real = Trainer.run

    def run(trainer: Trainer, **options: object) -> Adapter:
        adapter = real(trainer, **options)
        embeddings.parent.mkdir(parents=True, exist_ok=True)
        embeddings.write_text("in its place")
        return adapter

    monkeypatch.setattr(Trainer, "run", run)
    assert main(command(steps=2)) == 0
    saved = tmp_path / "home" / "magicapture-saved"
    assert f"saved in {saved} instead" in caplog.text
    assert load_adapter(saved / "ada.safetensors", [saved / "embeddings"]).lora


def test_one_file_to_share_is_enough_to_draw_with(
    command: Command, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert main([*command(steps=2), "--bundle"]) == 0
    out = tmp_path / "out"
    assert {f.name for f in out.iterdir()} == {"ada.safetensors", "states"}
    *_, line, hint, prompt = (r.getMessage() for r in caplog.records)
    assert hint.startswith("In ComfyUI: put the LoRA into models/loras")
    assert "a photo of embedding:my-person person in the embedding:my-style style" in prompt
    words = [*shlex.split(line)[1:], "--out", str(tmp_path / "drawn")]
    assert main([*words, "--steps", "2", "--width", "64", "--height", "64"]) == 0
    assert (tmp_path / "drawn" / "ada-0001.png").is_file()


def test_a_second_training_leaves_the_first_ones_tokens(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(command(steps=2)) == 0
    first = load_adapter(out / "ada.safetensors", [out / "embeddings"])
    assert main(command(steps=2, seed=1, out="people/bob.safetensors")) == 0
    assert main(command(steps=2, seed=2, out="eve")) == 0
    assert "embedding:my-person belongs to another LoRA, so this one is embedding:my-person-2" in (
        caplog.text
    )
    again = load_adapter(out / "ada.safetensors", [out / "embeddings"])
    assert all(
        torch.equal(first.tokens[n]["clip_l"], again.tokens[n]["clip_l"]) for n in first.tokens
    )
    bob = load_adapter(out / "people" / "bob.safetensors", [out / "people" / "embeddings"])
    eve = load_adapter(out / "eve.safetensors", [out / "embeddings"])
    assert set(bob.tokens) == {"my-person", "my-style"}
    assert set(eve.tokens) == {"my-person-2", "my-style-2"}


def test_sample_names_what_is_missing(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["sample", "--base", str(base), "--device", "cpu", "--adapter"]
    assert main([*words, str(tmp_path / "missing.safetensors")]) == 2
    assert "missing.safetensors" in errors(caplog)[0]
    assert main([*words, str(tmp_path / "missing.safetensors"), "--guidance", "0"]) == 2
    assert "guidance" in errors(caplog)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(([f"--strength={value}"], "strength") for value in ("nan", "inf", "-inf", "1e30")),
        (["--guidance", "nan"], "guidance"),
        (["--refocus-bias", "inf"], "bias"),
        (["--count", "0"], "--count"),
        (["--prompt", " "], "--prompt"),
        (["--prompt", "a photo of <somebody>"], r"<somebody>.*<ada>, <film>"),
        (["--out", "FILE/sub"], "choose another folder"),
    ],
)
def test_sample_refuses_what_would_draw_nothing_or_something_else(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, words: list[str], message: str
) -> None:
    vectors = {name: {"clip_l": torch.ones(1, 32)} for name in ("ada", "film")}
    lora = save_adapter(Adapter({}, vectors, "sd1"), tmp_path, tmp_path, "a").lora
    words = [word.replace("FILE", str(lora)) for word in words]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["sample", "--base", str(base), "--adapter", str(lora), *out, *words]) == 2
    (text,) = errors(caplog)
    assert re.search(message, text)


@pytest.mark.parametrize("words", [[], ["train"], ["train", "--steps", "many"], ["fly"]])
def test_bad_usage_exits_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2


def test_a_recipe_can_be_printed_changed_and_used(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split() == list(RECIPE_NAMES)
    assert main(["recipes", "paper"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert from_dict(Recipe, printed) == recipe("paper")

    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(to_dict(replace(recipe("textual-inversion"), name="mine"))))
    assert main(command(recipe=mine, steps=1, out="tokens")) == 0
    assert (tmp_path / "out" / "embeddings" / "my-style.safetensors").exists()


def test_any_field_of_a_recipe_can_be_set(command: Command, tmp_path: Path) -> None:
    words = ["--set", "lora.rank=3", "--set", "lora.rank=4", "--set", "phases[*].warmup=1"]
    words += ["--set", 'prompts.source=["a photo of {subject}"]', "--set", "name=mine"]
    words += ["--set", "phases[0].steps=1", "--set", "phases[1].steps=2"]
    assert main([*command(steps=None, rank=None), *words]) == 0
    out = tmp_path / "out"
    made = load_adapter(out / "ada.safetensors", [out / "embeddings"]).recipe
    assert made is not None
    assert (made.name, made.lora.rank, made.steps) == ("mine", 4, 3)
    assert made.prompts.source == ("a photo of {subject}",)
    assert [phase.warmup for phase in made.phases] == [1, 1]


def test_without_masks_none_is_needed(command: Command, tmp_path: Path) -> None:
    source = write_photos(tmp_path / "bare", 2, 4, masks=False)
    style = write_photos(tmp_path / "bare style", 2, 5, masks=False)
    assert main([*command(source=source, style=style, steps=2), "--without-masks"]) == 0


def write_drawn_faces(folder: Path, row: int) -> Path:
    """Two of the faces that paperdoll drew for the trial of detectors, a picture each."""
    folder.mkdir()
    with Image.open(trial._PICTURE) as picture:
        for i in range(2):
            place = (i * SIDE, row * SIDE, (i + 1) * SIDE, (row + 1) * SIDE)
            picture.crop(place).save(folder / f"{i}.png")
    return folder


OPTIONAL = (
    *("cv2", "facexlib", "insightface", "onnx", "onnx2torch", "onnxruntime", "torchvision"),
    *("albumentations", "numba", "pillow_heif", "skimage", "dlib", "face_recognition_models"),
)


def test_from_raw_photos_without_a_package_that_is_optional(
    command: Command, tmp_path: Path
) -> None:
    """Faces, masks, the doctor and a training, with none of OPTIONAL there to import."""
    photos, portraits = (write_drawn_faces(tmp_path / f"drawn {row}", row) for row in range(2))
    commands = (
        command(source=photos, style=portraits, steps=2),
        ["doctor", str(photos)],
        ["models"],
    )
    start = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); sys.stderr = sys.stdout\n"
        "from magicapture.cli import main\n"
        f"for words in {commands}:\n"
        "    print('next command', flush=True)\n"
        "    assert main(words) == 0"
    )
    ran = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = ran.stdout.split("next command")[1:]
    for telling in ("Faces are found by yunet_s.safetensors", ": 2 of 2."):
        assert telling in told[0]
    assert "a mask is an oval; one is parsing_bisenet.pth" in told[1]
    assert "0 faces" not in told[1]
    assert "onnx2torch" in told[2].split("Packages: ")[1].split(" missing; run ")[0]
    assert "requirements-faces.txt" in told[2]


def test_raw_photos_are_enough(
    command: Command, tmp_path: Path, shared_assets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {}
    for name, some in (("source", "person/foreground__0*.jpg"), ("style", "styles/*.jpg")):
        folders[name] = tmp_path / f"real-{name}"
        folders[name].mkdir()
        for photo in sorted((shared_assets / "photos").glob(some))[:2]:
            small = Image.open(photo).convert("RGB")
            small.thumbnail((256, 256))
            small.save(folders[name] / photo.name)
    assert main([*command(**folders, steps=2), "--face-model", "none"]) == 0
    said = [r.getMessage() for r in caplog.records]
    verdicts = [text for text in said if re.match(r"\w+\.jpg: (use|leave out)", text)]
    assert len(verdicts) == 4, "each photo has its verdict"
    masks = "Mask from landmarks (an oval; load a face parser for the true outline): 2 of 2."
    assert said.count(masks) == 2


def test_a_bug_exits_with_1_and_shows_where_if_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("magicapture.cli.recipe.recipes", broken)
    assert main(["recipes"]) == 1
    assert errors(caplog) == ["ZeroDivisionError: by nought (a bug; --verbose shows where)"]
    assert main(["recipes", "--verbose"]) == 1
    assert caplog.records[-1].exc_info


def test_a_disk_that_is_full_is_said_truly(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    show, before = Progress.__call__, resource.getrlimit(resource.RLIMIT_FSIZE)

    def stop(progress: Progress, event: Event) -> None:
        show(progress, event)
        if isinstance(event, Stepped) and event.step == 3:
            raise KeyboardInterrupt

    def write_to_a_full_disk(path: Path, write: Callable[[Path], object]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            atomic_write(path, write)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", stop)
        patch.setattr("magicapture.training.state.atomic_write", write_to_a_full_disk)
        words = [*command(), "--states", str(tmp_path / "elsewhere"), "--save-every", "1"]
        assert main(words) == 130
    assert caplog.text.count("cannot be saved") == 1
    assert "Stopped after step 3 of 4. Not saved: the disk is full." in caplog.text
    assert "Nothing is lost" not in caplog.text and "Traceback" not in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_too_little_memory_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("magicapture.cli.recipe.recipes", lambda _: torch.empty(10**15))
    assert main(["recipes"]) == 2
    (message,) = errors(caplog)
    assert "computer's memory is not enough" in message and "a bug" not in message


def test_logging_is_left_as_it_was() -> None:
    package = logging.getLogger("magicapture")
    before = (package.level, list(package.handlers))
    main(["recipes", "no-such"])
    assert (package.level, package.handlers) == before


def test_python_m_magicapture_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "magicapture", "recipes", "no-such"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("magicapture: error: There is no recipe 'no-such'")
    assert done.stderr.count("\n") == 1


def test_train_keeps_checkpoints_and_takes_another(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The marked one is saved; another one of the finished run without a step of training."""
    caplog.set_level(logging.INFO)
    keep = {"keep": 2, "keep_seeds": 1, "choose": "last", "resolution": 64, "face_model": "none"}
    assert main(command(take=2, **keep)) != 0
    assert errors(caplog)[0] == "--take: step 2 is not kept; expected one of 3, 4."
    assert main(command(**keep)) == 0
    out = tmp_path / "out"
    told = json.loads((out / "ada-checkpoints.json").read_text("utf-8"))
    assert [one["step"] for one in told["checkpoints"]] == [3, 4]
    saved = load_adapter(out / "ada.safetensors", [out / "embeddings"])
    assert saved.info["steps"] == str(told["best"])
    assert Image.open(out / "ada-checkpoints.png").size[1] > 400, "two rows"
    assert len((out / "ada-checkpoints.csv").read_text("utf-8").splitlines()) == 3
    assert any(line.startswith("Checkpoint of step 3, the best so far") for line in caplog.messages)
    other = ({3, 4} - {told["best"]}).pop()
    caplog.clear()
    assert main(command(take=other, **keep)) == 0
    saved = load_adapter(out / "ada.safetensors", [out / "embeddings"])
    assert saved.info["steps"] == str(other)
    assert "Trained 0 steps" in " ".join(caplog.messages)
    (out / "ada-checkpoints.json").write_text("{}")
    assert main(command(**keep)) != 0
    assert "did not write it" in errors(caplog)[0]
