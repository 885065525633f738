"""The house rules that a linter cannot hold: that the files which say the same thing agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import magicapture
from magicapture.faces.packages import FACES

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same library
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
NODES = ROOT / "nodes"


def test_public_names_exist_and_stand_once() -> None:
    names = getattr(magicapture, "__all__", [])
    assert len(names) == len(set(names))  # ruff sorts them
    missing = [name for name in names if not hasattr(magicapture, name)]
    assert not missing


def test_importing_the_package_imports_no_large_library() -> None:
    """Beside torch it takes half a second; each of these would take as long again, or longer."""
    large = {"cv2", "diffusers", "matplotlib", "onnx2torch", "ray", "torchvision", "transformers"}
    code = f"import sys, magicapture; print(*{large} & set(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not ran.stdout.split(), ran.stdout


def _node_ids() -> dict[str, str]:
    """The id that follows from each node's title, and the name of its class."""
    ids = {}
    for file in sorted(NODES.rglob("*.py")):
        for made in ast.walk(ast.parse(file.read_text("utf-8"))):
            for call in ast.walk(made) if isinstance(made, ast.ClassDef) else ():
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "schema":
                    title = re.sub(r"\(.*\)|MagiCapture", "", ast.literal_eval(call.args[0]))
                    title = re.sub(r"\b[a-z]", lambda first: first[0].upper(), title)
                    ids["MagiCapture" + "".join(filter(str.isalnum, title))] = made.name
    return ids


def test_node_ids_follow_from_their_titles_and_stay_for_ever() -> None:
    ids = _node_ids()
    frozen = (ROOT / "tests" / "node_ids.txt").read_text("utf-8").split()
    assert sorted(ids) == frozen, "ids are never renamed or removed; see CONTRIBUTING.md"
    assert all(node_id == name for node_id, name in ids.items())


def test_every_node_has_a_help_page() -> None:
    for node_id in _node_ids():
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
    lines = (ROOT / "requirements-faces.txt").read_text("utf-8").splitlines()
    assert lines == _project()["optional-dependencies"]["faces"]
    assert tuple(re.split("[<>=]", line)[0] for line in lines) == FACES


def test_the_version_is_the_same_everywhere() -> None:
    version = _project()["version"]
    assert magicapture.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in changelog or f"## [{version}]" in changelog


def test_picture_files_are_opened_by_formats_named() -> None:
    """Pillow on its own would start Ghostscript for some."""
    opened = [
        f"{file.relative_to(ROOT)}: {call}"
        for folder in (ROOT / "magicapture", NODES, ROOT / "benchmarks", ROOT / "pretrain")
        for file in sorted(folder.rglob("*.py"))
        for call in re.findall(r"\b(?:Image|Pillow)\.open\([^)]*\)?", file.read_text("utf-8"))
    ]
    assert opened and not [call for call in opened if "formats=" not in call]


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, broken
