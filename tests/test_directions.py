"""Who may import whom: the directions of the house, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "magicapture"
NODES = ROOT / "nodes"
PRETRAIN = ROOT / "pretrain"  # trains the paperdoll weights; not installed

# Each part of the core, and the parts it builds on. It may also use what those build on, and its
# own submodules. A new module gets a line here, and CONTRIBUTING.md says how to choose it.
DIRECTIONS: dict[str, str] = {
    "errors": "",
    "registry": "errors",
    "loss": "registry settings",
    "losses": "attention backbone",
    "checkpointing": "",
    "backups": "files",
    "digests": "",
    "interrupts": "",
    "memory": "errors",
    "paperdoll": "metrics recipes training losses images backbones",
    "liveview": "refocusing",
    "plot": "losses",
    "version": "",
    "provenance": "version",
    "environment": "version",
    "weight_files": "memory",
    "sentences": "errors",
    "settings": "errors",
    "families": "",
    "schedule": "",
    "older": "schedule settings",
    "config": "loss sentences families older",
    "files": "errors",
    "images": "files",
    "recipes": "losses",
    "tokens": "config files",
    "prompts": "tokens",
    "lora": "config",
    "parts": "lora",
    "faces": "config weight_files images",
    "attention": "config",
    "latents": "digests",
    "backbone": "tokens attention parts schedule latents",
    "backbones": "backbone weight_files digests",
    "data": "faces tokens backups losses",
    "style": "backbone",
    "checkpoints": "training evaluation style",
    "batch": "training checkpoints html",
    "bench": "training person environment clip html style",
    "clip": "backbones images",
    "dino": "backbones faces",
    "things": "dino identity",
    "html": "metrics images",
    "evaluation": "data person clip html",
    "adapters": "prompts parts backups provenance weight_files",
    "identity": "faces losses backbone",
    "person": "faces metrics",
    "refine": "person",
    "metrics": "losses",
    "magicface": "attention sampling",
    "sampling": "attention backbone adapters losses",
    "refocusing": "sampling checkpointing plot images",
    "doctor": "data metrics",
    "labels": "data",
    "planning": "training environment",
    "demo": "paperdoll plot backbones images",
    "training": "things labels prompts recipes refocusing digests interrupts memory version",
}
# The ends of the house, which may use all of it.
ENDS = {"__init__", "__main__", "cli"}

# Imported inside the function that needs them, so that a missing one costs that function alone.
OPTIONAL = {
    "bitsandbytes",
    "cv2",
    "diffusers",
    "facexlib",
    "fsspec",
    "insightface",
    "onnx",
    "onnx2torch",
    "onnxruntime",
    "peft",
    "pillow_heif",
    "ray",
    "rembg",
    "spandrel",
    "spandrel_extra_arches",
    "transformers",
    "yaml",
}
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
    "utils",
}


class Import(NamedTuple):
    """One name imported: `level` dots, `module`, `name` (empty for a plain import)."""

    file: Path
    line: int
    level: int
    module: str
    name: str
    at_import_time: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def top(self) -> str:
        """The top-level package of an absolute import."""
        return "" if self.level else self.module.partition(".")[0]

    @property
    def target(self) -> tuple[str, ...]:
        """The path from the checkout's root that a relative import points at."""
        folder = self.file.relative_to(ROOT).parent.parts
        base = folder[: len(folder) - self.level + 1]
        return (*base, *filter(None, self.module.split(".")), self.name)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _walk(node: ast.AST, at_import_time: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        now = at_import_time and not lazy and not _is_for_type_checkers(child)
        yield child, now
        yield from _walk(child, now)


@cache
def _imports(folder: Path) -> tuple[Import, ...]:
    found = []
    for file in sorted(folder.rglob("*.py")):
        for node, now in _walk(ast.parse(file.read_text("utf-8")), True):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [alias.name for alias in node.names]
                found += [Import(file, node.lineno, node.level, module, n, now) for n in names]
            elif isinstance(node, ast.Import):
                found += [Import(file, node.lineno, 0, a.name, "", now) for a in node.names]
    return tuple(found)


def _part(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def _allowed(part: str) -> set[str]:
    below = DIRECTIONS[part].split()
    return {part}.union(*(_allowed(b) for b in below))


def test_every_part_of_the_core_has_its_place() -> None:
    parts = {_part(file) for file in CORE.rglob("*.py")} - ENDS
    assert parts <= DIRECTIONS.keys(), "add the new module to DIRECTIONS"


def test_the_directions_have_no_circle() -> None:
    for part in DIRECTIONS:
        _allowed(part)  # recursion without end would raise


def test_the_core_imports_only_in_the_directions() -> None:
    wrong = []
    for imported in _imports(CORE):
        part = _part(imported.file)
        if not imported.level or part in ENDS:
            continue
        package, used, *_ = imported.target
        assert package == "magicapture", f"{imported} reaches out of the package"
        if used not in _allowed(part) | {"__version__"}:
            wrong.append(f"{imported}: {part} may not import {used}")
    assert not wrong, "\n".join(wrong)


def test_own_code_is_imported_relatively() -> None:
    wrong = [
        f"{i}: {i.module}"
        for folder in (CORE, NODES)
        for i in _imports(folder)
        if i.top in {"magicapture", "tests", "benchmarks"}
    ]
    assert not wrong, wrong


def test_pretraining_uses_the_dolls_and_nothing_uses_it() -> None:
    used = {i.module.split(".")[1] for i in _imports(PRETRAIN) if i.top == "magicapture"}
    assert used <= _allowed("paperdoll")
    wrong = [
        str(i)
        for folder in (CORE, NODES, ROOT / "benchmarks")
        for i in _imports(folder)
        if "pretrain" in (i.top, *i.target[:1])
    ]
    assert not wrong, wrong


def test_the_core_never_imports_comfyui() -> None:
    wrong = [f"{i}: {i.module}" for i in _imports(CORE) if i.top in COMFYUI]
    assert not wrong, wrong


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    wrong = [
        f"{i}: {i.module}"
        for folder in (CORE, NODES)
        for i in _imports(folder)
        if i.at_import_time and i.top in OPTIONAL
    ]
    assert not wrong, wrong


def test_nodes_use_the_core_and_what_nodes_share() -> None:
    wrong = []
    for imported in _imports(NODES):
        if not imported.level or imported.file.name == "__init__.py":
            continue
        target = imported.target
        # Underscores mark what the nodes share among themselves, and what the core keeps to itself.
        private = any(name.startswith("_") for name in target[1:])
        if private == (target[0] == "magicapture") and imported.file.parent == NODES:
            wrong.append(f"{imported}: {'.'.join(target)}")
    assert not wrong, wrong


def test_comfyui_is_met_in_one_folder() -> None:
    inner = COMFYUI - {"comfy_api"}
    wrong = [
        f"{i}: {i.module}"
        for i in _imports(NODES)
        if i.top in inner and "_comfy" not in (i.file.stem, i.file.parent.name)
    ]
    assert not wrong, wrong
