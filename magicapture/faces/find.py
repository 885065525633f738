"""Where the user's model files are: ComfyUI's folders, or one named from Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError, StorageError
from ..weight_files import may_hold_code
from .models import ENDINGS, FOLDERS, MODELS, ModelFile, Role, known

VARIABLE = "MAGICAPTURE_MODELS"
"""The environment variable that names a folder of models."""

_PURPOSES: dict[Role, str] = {
    "detector": "finds faces; one is needed for masks, checks and restoration",
    "parser": "outlines skin, hair and so on; without one a mask is an oval",
    "embedder": "tells people apart; needed for the identity loss and figure",
    "restorer": "redraws faces of finished pictures",
}

_PACKAGES = {
    "facexlib": "facexlib",
    "insightface": "insightface",
    "onnx2torch": "onnx2torch",
    "onnxruntime": "onnxruntime",
    "opencv-python": "cv2",
    "spandrel": "spandrel",
}

Places = Mapping[str, Sequence[Path]]
"""For each kind of `FOLDERS` the folders it stands for."""


def places(models: str | os.PathLike[str] | None = None) -> Places:
    """The folders to look in, below a folder laid out as ComfyUI's `models`, or flat.

    Without an argument that of the environment variable MAGICAPTURE_MODELS. Raises InputError
    for none or one that does not exist.
    """
    given = models or os.environ.get(VARIABLE)
    if not given:
        raise InputError(
            f"No folder of models is named: give one (--models), or set {VARIABLE}; ComfyUI's own "
            "models folder will do."
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise InputError(f"The folder of models {root} does not exist; check the path.")
    inside = {kind: [root / kind] for kind in FOLDERS}
    return inside if any(f.is_dir() for (f,) in inside.values()) else {"magicapture": [root]}


def files(role: Role, where: Places) -> dict[str, Path]:
    """The files that may serve a role, by name relative to their folder.

    Those of the table first, best first; then others, but for files known to be something else.
    """
    found: dict[str, Path] = {}
    for name, path in _walk(where):
        entry = known(path.name)
        if path.suffix.lower() in ENDINGS[role] and (entry is None or entry.role == role):
            found.setdefault(name, path)
    return {name: found[name] for name in sorted(found, key=lambda n: (_rank(found[n]), n))}


def locate(model: ModelFile, where: Places) -> list[Path]:
    """Every copy of a file of the table."""
    return [path for _, path in _walk(where) if known(path.name) is model]


def best(role: Role, where: Places, *, other_than: Path | None = None) -> Path:
    """The best file of the table for a role; raises StorageError that says what to get.

    other_than: a file of another network is taken where there is one. TorchScript is passed over,
    whatever its name: it runs code, so the user has to name it.
    """
    found = files(role, where)
    in_table = [p for p in found.values() if known(p.name) and not may_hold_code(p)]
    if not in_table:
        raise missing(role, where, ", ".join(found))
    taken = known(other_than.name) if other_than else None
    return next((path for path in in_table if known(path.name) is not taken), in_table[0])


def missing(role: Role, where: Places, instead: str = "") -> StorageError:
    """The error for a role without a file: which there are, where from, where to."""
    choices = "\n".join(f"- {model}" for model in MODELS if model.role == role)
    searched = ", ".join(str(folder) for folders in where.values() for folder in folders)
    other = f" Found instead, and not known by name: {instead}." if instead else ""
    return StorageError(
        f"There is no face {role}. Nothing is downloaded for you; get one of\n{choices}\n"
        f"Looked in {searched}.{other}"
    )


def inventory(where: Places) -> str:
    """What is there for each role, what is not, and which packages are lacking; for people."""
    lines = []
    for role, purpose in _PURPOSES.items():
        lines.append(f"Face {role}: {purpose}")
        for model in (m for m in MODELS if m.role == role):
            copies = locate(model, where)
            there = ", ".join(str(path) for path in copies)
            lines.append(f"  found    {model.file}: {there}" if copies else f"  missing  {model}")
    lacking = [name for name, module in _PACKAGES.items() if find_spec(module) is None]
    lines.append(f"Packages: {', '.join(lacking)} missing" if lacking else "Packages: all there")
    return "\n".join(lines)


def _walk(where: Places) -> Iterator[tuple[str, Path]]:
    """Every file, by name relative to its folder."""
    for folders in where.values():
        for folder in folders:
            if folder.is_dir():
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        yield path.relative_to(folder).as_posix(), path


def _rank(path: Path) -> int:
    entry = known(path.name)
    return len(MODELS) if entry is None else MODELS.index(entry)
