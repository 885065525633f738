"""The house rules that a linter cannot hold: that the files which say the same thing agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import magicapture

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same library
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
NODES = ROOT / "nodes"


def test_public_names_exist_and_are_sorted() -> None:
    names = getattr(magicapture, "__all__", [])
    assert list(names) == sorted(set(names))
    missing = [name for name in names if not hasattr(magicapture, name)]
    assert not missing


def _node_ids() -> dict[str, Path]:
    """The `node_id` of every Schema in the nodes, and its file."""
    ids = {}
    for file in sorted(NODES.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Schema"):
                given = {k.arg: k.value for k in call.keywords}
                ids[ast.literal_eval(given["node_id"])] = file
    return ids


def test_every_node_has_an_id_of_letters_and_digits_and_a_help_page() -> None:
    for node_id, file in _node_ids().items():
        assert re.fullmatch(r"[A-Za-z0-9]+", node_id), f"{file.name}: {node_id}"
        page = ROOT / "web" / "docs" / f"{node_id}.md"
        assert page.is_file(), f"{node_id} has no help page at {page.relative_to(ROOT)}"


def test_every_help_page_belongs_to_a_node() -> None:
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    assert pages <= _node_ids().keys()


def test_every_workflow_has_a_thumbnail() -> None:
    for workflow in (ROOT / "workflows").glob("*.json"):
        assert workflow.with_suffix(".jpg").is_file(), f"{workflow.name} has no thumbnail"


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_requirements_are_the_dependencies() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert lines == _project()["dependencies"]


def test_the_version_is_the_same_everywhere() -> None:
    version = _project()["version"]
    assert magicapture.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in changelog or f"## [{version}]" in changelog


def test_picture_files_are_opened_in_one_place() -> None:
    """The one that names the formats: Pillow on its own would start Ghostscript for some."""
    opening = [
        file.relative_to(ROOT).as_posix()
        for folder in (ROOT / "magicapture", NODES)
        for file in sorted(folder.rglob("*.py"))
        if re.search(r"\bImage\.open\(|\bPillow\.open\(", file.read_text("utf-8"))
    ]
    assert opening == ["magicapture/images/reading.py"]


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, broken
