"""Every kind of model of faces that is known; what is listed, found and loaded derives from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, MagiCaptureError, StorageError
from ..memory import refuse_large
from .content import Content, first_line
from .detectors import DETECTORS
from .dinos import DINOS
from .embed import EMBEDDERS
from .models import ONNX, TITLES, ModelFile, ModelKind, Role
from .packages import lacking, needs
from .parsers import PARSERS
from .restorers import RESTORERS

_kinds: list[ModelKind] = [*DETECTORS, *PARSERS, *EMBEDDERS, *RESTORERS, *DINOS]

_FOLDERS = (
    "insightface",
    "facexlib",
    "facedetection",
    "detection",
    "facerestore_models",
    "magicapture",
)


@contextmanager
def registered_model(kind: ModelKind) -> Iterator[None]:
    """Have a further kind of model found, listed and loaded, until the context ends."""
    _kinds.append(kind)
    try:
        yield
    finally:
        _kinds.remove(kind)


def kinds(role: Role) -> tuple[ModelKind, ...]:
    """The kinds of model that serve a role."""
    return tuple(kind for kind in _kinds if kind.role == role)


def model_files(role: Role) -> list[ModelFile]:
    """The files known for a role, best first."""
    return sorted((f for kind in kinds(role) for f in kind.files), key=lambda file: file.rank)


def endings(role: Role) -> tuple[str, ...]:
    """Endings of the files that are read for a role."""
    return tuple(dict.fromkeys(ending for kind in kinds(role) for ending in kind.endings))


def folders() -> tuple[str, ...]:
    """Folders below ComfyUI's models folder to look in, their sub-folders included."""
    named = (file.folder.partition("/")[0] for kind in _kinds for file in kind.files)
    return tuple(dict.fromkeys((*_FOLDERS, *named)))


def known(name: str) -> tuple[Role, ModelFile] | None:
    """The file that one of this name is taken to be, and its role; None for other names."""
    files = [(role, file) for role in TITLES for file in model_files(role)]
    exact = (entry for entry in files if entry[1].file.lower() == name.lower())
    return next(exact, None) or next((entry for entry in files if entry[1].is_called(name)), None)


def packages() -> dict[str, str]:
    """Every package that runs a model, by its name in the package registry, and its module."""
    return {
        name: module
        for kind in _kinds
        for ending in kind.endings
        for name, module in sorted(_needed(kind, ending).items())
    }


def lacking_for(role: Role, path: Path) -> list[str]:
    """The packages that run this file, known by its name, and are not installed."""
    kind = next(k for k in kinds(role) if any(file.is_called(path.name) for file in k.files))
    return lacking(_needed(kind, path.suffix))


def _needed(kind: ModelKind, ending: str) -> dict[str, str]:
    """The packages that run a kind of model and read its files of this ending."""
    return {**kind.packages, **({"onnx": "onnx"} if ending.lower() in ONNX else {})}


def titles(role: Role) -> str:
    """The kinds for a role in a sentence: "SCRFD (insightface), ... or YuNet (OpenCV)"."""
    return _listed([kind.title for kind in kinds(role)])


def homes(role: Role) -> str:
    """The folders that a role's files belong in, in a sentence: "models/facexlib or ..."."""
    names = (file.folder.partition("/")[0] for file in model_files(role))
    return _listed([f"models/{name}" for name in dict.fromkeys(names)])


def load_model(role: Role, path: str | Path) -> Any:
    """What the file of a role holds, by its content, as its kind's `load` makes it.

    Raises StorageError for a file that is missing or damaged, InputError for one that is of no
    kind or cannot be run, MagiCaptureError where a package is not installed.
    """
    content = Content(Path(path))
    name = content.path.name
    if not content.path.is_file():
        raise StorageError(
            f"There is no {TITLES[role]} at {content.path}; check its name and folder."
        )
    with torch.inference_mode(False):  # tensors made in it could never take part in a gradient
        try:
            kind = next((k for k in kinds(role) if k.recognises and k.recognises(content)), None)
        except ImportError as error:
            raise needs(f"Reading {name}", ["onnx"], error) from error
        if kind is None or kind.load is None:
            raise InputError(f"{content} is no {TITLES[role]}; expected {titles(role)}.")
        doing = f"Running {name} ({kind.title})"
        if absent := lacking(_needed(kind, content.path.suffix)):
            raise needs(doing, absent)
        try:
            return kind.load(content)
        except MagiCaptureError:
            raise
        except ImportError as error:
            raise needs(doing, list(kind.packages), error) from error
        except Exception as error:  # whatever a foreign package raises of a foreign file
            refuse_large(name, error)
            raise InputError(
                f"{name} looks like {kind.title}, but does not run ({first_line(error)}). "
                f"Download it again; if that does not help, reinstall {_listed(kind.packages)}."
            ) from error


def _listed(names: Any) -> str:
    *first, last = list(names) or ["nothing"]
    return f"{', '.join(first)} or {last}" if first else last
