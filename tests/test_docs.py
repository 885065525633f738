"""The documents' Python: it is whole, it imports public names alone, and it runs."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import magicapture
from magicapture import families
from magicapture.paperdoll.pairs import make_pair
from magicapture.paperdoll.weights import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent


def _blocks() -> Iterator[tuple[str, str]]:
    """The Python blocks of README.md, CONTRIBUTING.md and docs/, with their places."""
    for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text("utf-8")
        for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text[: block.start()].count("\n") + 2
            yield f"{page.relative_to(ROOT)}:{line}", block[1]


BLOCKS = dict(_blocks())


@pytest.mark.parametrize("place", BLOCKS)
def test_the_documents_import_public_names_alone(place: str) -> None:
    for node in ast.walk(ast.parse(BLOCKS[place])):
        if isinstance(node, ast.ImportFrom) and node.module:
            top = node.module.partition(".")[0]
            assert top != "magicapture" or node.module == "magicapture", node.module
            if top == "magicapture":
                missing = {alias.name for alias in node.names} - set(magicapture.__all__)
                assert not missing, f"{missing} not in magicapture.__all__"


def _block(page: str) -> str:
    return next(code for place, code in BLOCKS.items() if place.startswith(page))


def test_the_example_of_the_readme_runs() -> None:
    code = _block("README.md")
    lines = [line for line in code.splitlines() if line and not line.startswith(("from", "#"))]
    assert len(lines) <= 6
    short = code.replace("steps=200", "steps=2")
    assert short != code
    made: dict[str, torch.Tensor] = {}
    exec(short, made)
    assert made["images"].shape == (1, 3, 128, 128)


def test_the_world_of_dolls_is_drawn_as_the_page_says() -> None:
    made: dict[str, magicapture.paperdoll.Doll] = {}
    exec(_block("docs/paperdoll.md"), made)
    assert made["doll"].image.shape == (3, 128, 128) and made["doll"].landmarks.shape == (5, 2)


@pytest.mark.parametrize("page", sorted((ROOT / "web" / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_a_help_page_has_a_small_picture_of_its_node(page: Path) -> None:
    found = re.findall(r"!\[(.+?)\]\((.+?)\)", page.read_text("utf-8"))
    title = page.read_text("utf-8").splitlines()[0].removeprefix("# ")
    assert (title, f"pictures/{page.stem}.webp") in found
    for _, file in found:
        with Image.open(page.parent / file) as picture:
            assert 200 <= picture.width <= 600
        assert (page.parent / file).stat().st_size < 40_000


def _write_photos(folder: Path, dolls) -> None:
    folder.mkdir(parents=True)
    for i, doll in enumerate(dolls, 1):
        for name, picture in ((f"{i}.png", doll.image), (f"{i}.mask.png", doll.mask[[0, 0, 0]])):
            pixels = (picture * 255).round().astype("uint8").transpose(1, 2, 0)
            Image.fromarray(pixels).resize((256, 256)).save(folder / name)


def test_the_library_as_the_usage_page_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, on drawn photos: with the small model, two steps, and no photos of people."""
    pair = make_pair(1_000_000, 1_000_099, photos=2)
    _write_photos(tmp_path / "photos" / "ada", pair.source)
    _write_photos(tmp_path / "photos" / "noir", pair.reference)
    shutil.copytree(WEIGHTS, tmp_path / "model")
    code = _block("docs/usage.md")
    for real, small in {
        '"model.safetensors", device="cuda", decoder="taesd"': '"model"',
        'recipe("magicapture")': "doll_example(steps=2).job.recipe",
        'load_face_embedder("w600k_r50.onnx")': "doll_example().face_model",
    }.items():
        assert real in code
        code = code.replace(real, small)
    monkeypatch.chdir(tmp_path)
    exec("from magicapture import doll_example\n" + code, {})
    assert (tmp_path / "trained" / "ada-noir.safetensors").is_file()
    assert (tmp_path / "trained" / "embeddings" / "noir-1.safetensors").is_file()


def test_the_page_of_base_models_is_made_from_the_data() -> None:
    page = (ROOT / "docs/families.md").read_text("utf-8")
    assert families.table() in page, "docs/families.md: put in what families.table() returns"
