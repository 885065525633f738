"""Where the user's model files are: ComfyUI's folders, or one named from Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, MagiCaptureError, StorageError
from ..weight_files import may_hold_code
from .content import Content
from .models import TITLES, ModelFile, Role
from .packages import install_command, lacking
from .registry import (
    endings,
    folders,
    kinds,
    known,
    lacking_for,
    model_files,
    packages,
)

VARIABLE = "MAGICAPTURE_MODELS"
"""The environment variable that names a folder of models."""

_PURPOSES: dict[Role, str] = {
    "detector": "finds faces; one is needed for masks, checks and restoration",
    "parser": "outlines skin, hair and so on; without one a mask is an oval",
    "embedder": "tells people apart; needed for the identity loss and to measure likeness",
    "restorer": "redraws faces of finished pictures",
    "dino": "compares a thing that is no face with its photos; the recipe things needs one",
}

_WITHOUT: dict[Role, str] = {
    "detector": "no faces are found",
    "parser": "a mask is an oval",
    "embedder": "people are not told apart, and the identity loss is off",
    "restorer": "no faces are restored",
    "dino": "things are not compared with their photos",
}

_SHARED = "detection"
"""ComfyUI's own folder, for models that its own nodes run; most of them are none of ours."""

_TELLING = (".safetensors", ".dat")
"""Endings of files whose first bytes tell what they hold."""

Places = Mapping[str, Sequence[Path]]
"""For each name of `folders()` the folders it stands for."""


def places(models: str | os.PathLike[str] | None = None) -> Places:
    """The folders to look in, below a folder laid out as ComfyUI's `models`, or flat.

    Without an argument that of the environment variable MAGICAPTURE_MODELS, without that none.
    Raises InputError for one that does not exist.
    """
    given = models or os.environ.get(VARIABLE)
    if not given:
        return {}
    root = Path(given).expanduser()
    if not root.is_dir():
        raise InputError(f"The folder of models {root} does not exist; check the path.")
    inside = {kind: [root / kind] for kind in folders()}
    return inside if any(f.is_dir() for (f,) in inside.values()) else {"magicapture": [root]}


def files(role: Role, where: Places) -> dict[str, Path]:
    """The files that may serve a role, by name relative to their folder.

    Those known by name first, best first; then others, but for files that are something else.
    What comes with the pack, or with another package, is among them.
    """
    found: dict[str, Path] = {}
    for kind, name, path in _walk(where):
        if path.suffix.lower() in endings(role) and _may_serve(role, kind, path):
            found.setdefault(name, path)
    return {name: found[name] for name in sorted(found, key=lambda n: (_rank(found[n]), n))}


def _may_serve(role: Role, kind: str, path: Path) -> bool:
    """Whether a file may serve a role, by its name, its folder and a .safetensors' header."""
    if entry := known(path.name):
        return entry[0] == role
    readers = [k.recognises for k in kinds(role) if path.suffix.lower() in k.endings]
    if path.suffix.lower() not in _TELLING or None in readers:
        return kind != _SHARED
    try:
        return any(recognises(Content(path)) for recognises in readers if recognises)
    except MagiCaptureError:
        return False


def locate(model: ModelFile, where: Places) -> list[Path]:
    """Every copy of a known file."""
    return [path for _, _, path in _walk(where) if _known_file(path) is model]


def best(role: Role, where: Places, *, other_than: Path | None = None) -> Path:
    """The best known file for a role; raises StorageError that says what to get.

    One whose packages are not installed is taken only where there is no other. other_than: a file
    of another network is taken where there is one. TorchScript is passed over, whatever its name:
    it runs code, so the user has to name it.
    """
    found = files(role, where)
    by_name = [p for p in found.values() if _known_file(p) and not may_hold_code(p)]
    if not by_name:
        raise missing(role, where, ", ".join(found))
    able = [path for path in by_name if not lacking_for(role, path)] or by_name
    taken = _known_file(other_than) if other_than else None
    return next((path for path in able if _known_file(path) is not taken), able[0])


def best_or_none(role: Role, where: Places) -> tuple[Path | None, str]:
    """The best known file for a role that can be run; without one None, and a sentence on it."""
    try:
        path = best(role, where)
    except StorageError:
        known_files = model_files(role)
        easy = next((file for file in known_files if file.package), known_files[0])
        return None, f"No {TITLES[role]} found, so {_WITHOUT[role]}; one is {easy}."
    if absent := lacking_for(role, path):
        return None, (
            f"{path.name} needs {' and '.join(absent)}, so {_WITHOUT[role]}; run "
            f"{install_command(absent)}"
        )
    return path, ""


def missing(role: Role, where: Places, instead: str = "") -> StorageError:
    """The error for a role without a file: which there are, where from, where to."""
    known_files = (file for file in model_files(role) if not file.shipped)
    first, *others = sorted(known_files, key=lambda file: (not file.is_free, file.rank))
    choices = "\n".join(f"- {file}" for file in others)
    searched = ", ".join(str(folder) for given in where.values() for folder in given)
    searched = searched or f"no folder: name one (--models), or set {VARIABLE}"
    other = f" Found instead, and not known by name: {instead}." if instead else ""
    return StorageError(
        f"There is no {TITLES[role]}. Put {first.file} into models/{first.folder}; it is published "
        f"at {first.published}, licence: {first.licence}. Nothing is downloaded for you.\n"
        + (f"Others that do:\n{choices}\n" if choices else "")
        + f"Looked in {searched}.{other}"
    )


def inventory(where: Places) -> str:
    """What is there for each role, what is not, and which packages are lacking; for people."""
    lines = []
    for role, purpose in _PURPOSES.items():
        lines.append(f"{TITLES[role][0].upper()}{TITLES[role][1:]}: {purpose}")
        for file in model_files(role):
            copies = locate(file, where)
            there = ", ".join(str(path) for path in copies)
            lines.append(f"  found    {file.file}: {there}" if copies else f"  missing  {file}")
    absent = lacking(packages())
    lines.append(
        f"Packages: {', '.join(absent)} missing; run {install_command(absent)}"
        if absent
        else "Packages: all there"
    )
    return "\n".join(lines)


def _walk(where: Places) -> Iterator[tuple[str, str, Path]]:
    """Every file: the kind of its folder, its name relative to that, and its path."""
    for kind, given in where.items():
        for folder in given:
            for path in sorted(_below(folder)):
                yield kind, path.relative_to(folder).as_posix(), path
    for file in (file for role in TITLES for file in model_files(role)):
        if installed := file.installed:
            yield file.folder, file.file, installed


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, each folder once; links are followed, as people share models."""
    seen = set()
    for here, inner, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(place)
        inner.sort(key=lambda name: (os.path.islink(os.path.join(here, name)), name))
        yield from (path for name in names if (path := Path(here, name)).is_file())


def _known_file(path: Path) -> ModelFile | None:
    entry = known(path.name)
    return entry[1] if entry else None


def _rank(path: Path) -> float:
    file = _known_file(path)
    return file.rank if file else float("inf")
