"""What users get: the files that the registry packs, and those of the wheel."""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same library
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# What a user's ComfyUI reads, or a user: a new entry of the checkout joins it or .comfyignore.
SHIPPED = {
    *("__init__.py", "docs", "locales", "magicapture", "nodes", "subgraphs", "web", "workflows"),
    *("CHANGELOG.md", "LICENSE", "NOTICE", "README.md"),
    *("pyproject.toml", "requirements.txt", "requirements-faces.txt"),
}


def listed(*options: str) -> set[str]:
    """Tracked files, as git lists them."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", *options]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the registry packs what git tracks, and git does not tell: {error}")
    return {file for file in ran.stdout.split("\0") if (ROOT / file).is_file()}


@pytest.fixture(scope="module")
def published() -> set[str]:
    """As `comfy node publish` chooses: what is tracked, less what .comfyignore names."""
    return listed() - listed("--ignored", "--exclude-from=.comfyignore")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_all_that_a_user_needs_is_packed_and_nothing_else(published: set[str]) -> None:
    assert {file.split("/")[0] for file in published} <= SHIPPED
    pictures = re.compile(r"docs/.*\.(jpg|png)|docs/benchmarks/.*")
    needed = {
        file for file in listed() if file.split("/")[0] in SHIPPED and not pictures.match(file)
    }
    assert needed == published


@pytest.mark.parametrize("folder", ["locales", "subgraphs", "web", "workflows"])
def test_what_comfyui_finds_by_its_place_is_packed(published: set[str], folder: str) -> None:
    """Also a file that nobody has added to git yet."""
    there = {
        file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob("*") if file.is_file()
    }
    assert there <= published


def test_the_published_size_is_the_one_written_down(published: set[str]) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    written = re.search(r"([\d.]+) MB\s+zipped, ([\d.]+) MB\s+unpacked", page)
    assert written
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(published):
            archive.write(ROOT / file, file)
    unpacked = sum((ROOT / file).stat().st_size for file in published)
    sizes = [packed.tell() / 1e6, unpacked / 1e6]
    assert sizes == pytest.approx([float(size) for size in written.groups()], rel=0.05)


def test_the_wheel_takes_every_file_of_the_package() -> None:
    core = ROOT / "magicapture"
    patterns = pyproject()["tool"]["setuptools"]["package-data"]["magicapture"]
    taken = {file.relative_to(ROOT).as_posix() for p in patterns for file in core.glob(p)}
    files = {file for file in listed() if file.startswith("magicapture/")}
    assert {file for file in files if not file.endswith(".py")} <= taken


def test_the_registry_finds_the_pictures() -> None:
    project = pyproject()
    source = project["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    base = f"https://raw.githubusercontent.com/{source}/main/"
    for name, ratio in (("Icon", 1), ("Banner", 21 / 9)):
        url = project["tool"]["comfy"][name]
        with Image.open(ROOT / url.removeprefix(base), formats=("JPEG", "PNG")) as picture:
            assert picture.width / picture.height == pytest.approx(ratio)
            assert name != "Icon" or picture.width <= 400
