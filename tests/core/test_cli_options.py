"""What the command line refuses before anything is loaded, its help, and the files it keeps."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magicapture.cli import main
from magicapture.cli.arguments import parser
from magicapture.cli.images import save_image
from magicapture.cli.outputs import check_json, check_sheet, write_json
from magicapture.errors import InputError

Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The words of a `train` whose base model is missing, with more words behind them."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 96, 96, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        folder = tmp_path / ("source" if index < 4 else "style")
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index}.png")
        Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 32)).save(
            folder / f"{index}.mask.png"
        )
    words = ["train", "--base", "missing.safetensors", "--out", "ada", "--device", "cpu"]
    for name in ("source", "style"):
        words += [f"--{name}", str(tmp_path / name)]
    return lambda *more: [*words, *map(str, more)]


def error(caplog: pytest.LogCaptureFixture) -> str:
    """The one error since the last call."""
    (found,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    caplog.clear()
    return found


# -- recipes ----------------------------------------------------------------------------------

BAD_RECIPES = {
    "a number in quotes": ('{"lora": {"rank": "16"}}', "lora.rank: expected a whole number"),
    "a text for a list": ('{"prompts": {"composed": "a {subject}"}}', "composed: expected a list"),
    "a format": ('{"prompts": {"prior": ["{noun:>3000000000}"]}}', "prompts.prior[0]: only"),
    "no phases": ("{}", "phases: it has no steps to train"),
    "no rates": ('{"phases": [{"rates": {"tokens": 0}}]}', "phases[0].rates: every learning rate"),
    "no weights": (
        '{"phases": [{"weights": {"source": 0, "style": 0}}]}',
        "phases[0].weights: no loss looks at a picture",
    ),
    "no class images": ('{"phases": [{"weights": {"prior": 1}}]}', "prior.images: expected 1"),
    "huge": ('{"resolution": 100000}', "resolution: expected 64 to 2048, got 100000"),
    "a list": ("[]", "expected an object with named settings"),
    "deep": ("[" * 100_000, "nests too deep"),
    "no JSON": ("recipe", "This is no JSON"),
}


@pytest.mark.parametrize(("text", "named"), BAD_RECIPES.values(), ids=BAD_RECIPES.keys())
def test_a_bad_recipe_is_named_before_anything_is_loaded(
    text: str, named: str, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(text)
    assert main(command("--recipe", mine)) == 2
    assert named in error(caplog)


def test_a_recipe_without_phases_cannot_be_stretched(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.JSON").write_text("{}")
    assert main(command("--recipe", tmp_path / "mine.JSON", "--steps", 4)) == 2
    assert "--steps: The recipe 'mine' has no steps to train" in error(caplog)


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--set", "lora.rnk=4"], '--set: lora.rnk: there is no such setting; did you mean "rank"'),
        (["--set", "lora.rank"], "--set: Expected PATH=VALUE"),
        (["--set", 'lora.rank="4"'], '--set: lora.rank: expected a whole number, got "4"'),
        (["--seed", "-1"], "--seed: expected 0 to 4294967295, got -1"),
        (["--preview-every", "-1"], "--preview-every: expected at least 0, got -1"),
        (["--steps", "-5"], "--steps: -5 steps are too few"),
        (["--source", ""], "--source: expected a text"),
        (["--device", "mps"], "--device: 'mps' cannot be used here (this PyTorch has no such"),
        (["--device", "abacus"], "--device: 'abacus' cannot be used here"),
        (["--models", "nowhere"], "The folder of models nowhere does not exist"),
        (["--detector", "nowhere.onnx"], "nowhere.onnx"),
    ],
)
def test_a_bad_option_of_train_is_named_in_one_line(
    more: list[str], named: str, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    if "mps" in more and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    assert main(command(*more)) == 2
    message = error(caplog)
    assert named in message and len(message) < 300 and "\n" not in message


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--count", "0"], "--count: expected at least 1, got 0"),
        (["--count", "-3"], "--count: expected at least 1, got -3"),
        (["--prompt", ""], "--prompt: expected a text, got an empty one"),
        (["--prompt", "  "], "--prompt: expected a text, got an empty one"),
        (["--seed", "-1"], "--seed: expected 0 to 4294967295"),
        (["--strength", "nan"], "--strength: expected -10.0 to 10.0, got nan"),
        (["--strength", "1e30"], "--strength: expected -10.0 to 10.0"),
        (["--width", "100"], "--width: expected a multiple of 8, got 100"),
        (["--height", "5000"], "--height: expected 64 to 4096, got 5000"),
        (["--steps", "1"], "--steps: expected 2 to 1000, got 1"),
        (["--guidance", "nan"], "--guidance: expected a finite number, got NaN"),
        (["--refocus-bias", "-1"], "--refocus-bias: expected 0 to 30, got -1.0"),
        (["--refocus-region", "x.png"], "--refocus-region: it acts through"),
    ],
)
def test_a_bad_option_of_sample_is_named(
    more: list[str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["sample", "--base", "x", "--adapter", "missing.safetensors", *more]) == 2
    assert named in error(caplog)


def test_a_bad_option_of_others_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for words, named in (
        (["demo", "--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["doctor", str(tmp_path), "--resolution", "8"], "--resolution: expected 64 to 2048"),
        (["doctor", ""], "FOLDER: expected a text"),
        (["identity", "", "x.png"], "FOLDER: expected a text"),
        (["card", str(tmp_path / "none.safetensors")], "none.safetensors"),
    ):
        assert main(words) == 2
        assert named in error(caplog)


def test_usage_errors_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["fly"], ["train"], ["train", "--steps", "many"], ["sample", "--nothing"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith("magicapture: error: ") and text.count("\n") == 1
        assert "--help" in text


# -- help -------------------------------------------------------------------------------------


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (choice,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return choice.choices


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a command but for --help."""
    return [a for a in command._actions if a.option_strings and a.dest != "help"]


def test_every_option_with_a_value_shows_its_default() -> None:
    for name, command in commands().items():
        assert command.description, name
        for action in options(command):
            if action.nargs != 0 and not action.required:
                assert "Default: " in (action.help or ""), (name, action.option_strings)
    sample, train = (" ".join(commands()[c].format_help().split()) for c in ("sample", "train"))
    assert "(Default: 30; paper: 50; release: 50.)" in sample
    assert "(Default: the recipe's, 16 in magicapture; release: 4.)" in train


def test_long_commands_show_their_options_in_groups() -> None:
    for name in ("train", "sample"):
        titles = [g.title for g in commands()[name]._action_groups if g._group_actions]
        assert len(titles) > 3, titles
        assert "--verbose" in commands()[name].format_help()


def test_every_option_is_in_the_documentation(repo: Path) -> None:
    text = (repo / "docs" / "usage.md").read_text("utf-8")
    for name, command in commands().items():
        section = text.partition(f"\n### magicapture {name}\n")[2]
        section = re.split(r"\n###? ", section)[0]
        assert section, name
        for action in options(command):
            if action.dest != "verbose":
                assert f"`{action.option_strings[0]}`" in section, (name, action.option_strings)
        known = {flag for action in command._actions for flag in action.option_strings}
        rows = re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE)
        told = set(re.findall(r"`(--[a-z-]+)`", " ".join(rows)))
        assert told <= known, told - known


# -- files of others --------------------------------------------------------------------------

COMMAND = "magicapture doctor"


def test_json_is_written_over_our_own_alone(tmp_path: Path) -> None:
    ours = tmp_path / "ours.json"
    check_json(ours, COMMAND)
    write_json(ours, {"photos": []}, COMMAND)
    check_json(ours, COMMAND)
    assert json.loads(ours.read_text("utf-8")) == {"made_by": COMMAND, "photos": []}
    check_json(None, COMMAND)
    for theirs in ("{}", "[]", "text", "[" * 100_000, '{"made_by": "magicapture identity"}'):
        file = tmp_path / "theirs.json"
        file.write_text(theirs)
        with pytest.raises(InputError, match=r"--json: .* did not write it"):
            check_json(file, COMMAND)
    with pytest.raises(InputError, match="did not write it"):
        check_json(tmp_path, COMMAND)


def test_a_sheet_is_written_over_our_own_alone(tmp_path: Path) -> None:
    photos, image = tmp_path / "photos", np.zeros((3, 8, 8), np.float32)
    photos.mkdir()
    ours, theirs = tmp_path / "ours.png", tmp_path / "theirs.png"
    save_image(torch.from_numpy(image), ours, "contact sheet")
    check_sheet(ours, photos, "contact sheet")
    check_sheet(tmp_path / "new.PNG", photos, "contact sheet")
    Image.new("RGB", (8, 8)).save(theirs)
    text = tmp_path / "text.png"
    text.write_text("mine")
    for file, reason in (
        (theirs, "no contact sheet"),
        (text, "no contact sheet"),
        (tmp_path / "sheet.jpg", "does not end in .png"),
        (photos / "sheet.png", "among the photos"),
    ):
        with pytest.raises(InputError, match=f"--sheet: .*{reason}"):
            check_sheet(file, photos, "contact sheet")


@pytest.mark.parametrize(
    "words", [["doctor", "{photos}", "--json"], ["identity", "{photos}", "{photos}", "--json"]]
)
def test_a_report_in_the_way_is_told_before_the_work(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "thesis.json"
    file.write_text("mine")
    given = [word.format(photos=tmp_path / "nowhere") for word in words]
    assert main([*given, str(file)]) == 2
    assert "thesis.json exists" in error(caplog)
    assert file.read_text() == "mine"


def test_a_demo_leaves_a_folder_of_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "result.png").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds result.png, which no demo wrote" in error(caplog)
    assert (tmp_path / "result.png").read_text() == "mine"
