"""ComfyUI's folders as the nodes see them: what a drop-down lists, and where a name leads."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...magicapture.errors import InputError, StorageError
from ...magicapture.faces.find import Places, best, best_or_none, files, missing
from ...magicapture.faces.models import TITLES, Role
from ...magicapture.faces.registry import folders
from ...magicapture.files import inside, safe_name, safe_path
from .host import find_file, model_folders, output_folder

AUTO = "best found"
"""Stands for the best known file there is, in a drop-down of model files."""

OR_NONE = "best found, or none"
"""Stands for AUTO's file, or for no model where there is none that can be run."""

RECIPES = "magicapture/recipes"
"""The folder of the user's recipe files, below ComfyUI's models folder."""

AESTHETIC = "magicapture/aesthetic"
"""The folder of the user's aesthetic predictors, below ComfyUI's models folder."""

SECOND = "second best found"
"""Stands for the best known file of another network than AUTO's, or for that one if it is alone."""


def input_folders() -> list[str]:
    """The folders below ComfyUI's input folder, by relative name."""
    return sorted(folder_paths.get_input_subfolders())


def new_input_folder(name: str) -> Path:
    """Where a folder of this name would lie below ComfyUI's input folder.

    Raises InputError for a name that is none, and StorageError for one that leads out.
    """
    return inside(folder_paths.get_input_directory(), safe_path(name, "photo set's name", "/"))


def input_name(folder: Path) -> str:
    """A folder's name as drop-downs list it, relative to ComfyUI's input folder."""
    return folder.relative_to(Path(folder_paths.get_input_directory()).resolve()).as_posix()


def input_folder(name: str) -> Path:
    """A folder below ComfyUI's input folder; raises InputError for one that is not."""
    root = Path(folder_paths.get_input_directory()).resolve()
    folder = (root / name).resolve()
    if folder == root or not folder.is_relative_to(root) or not folder.is_dir():
        raise InputError(
            f"There is no folder {name!r} in ComfyUI's input folder. Press 'upload photos' and "
            f"give it this name, choose another folder, or put photos into {root / name}."
        )
    return folder


def state_folder() -> Path:
    """Where cancelled runs wait to be resumed."""
    return output_folder() / "magicapture" / "runs"


def saved_folder() -> Path:
    """Where adapters go that the model folders do not take."""
    return output_folder() / "magicapture" / "saved"


def listed_name(file: Path) -> str:
    """A LoRA's name as stock loaders list it, sub-folder included; its own elsewhere."""
    for folder in model_folders("loras"):
        if file.is_relative_to(folder.resolve()):
            return os.fspath(file.relative_to(folder.resolve()))
    return file.name


def lora_names() -> list[str]:
    """The LoRA files that stock loaders list."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file of a LoRA; raises InputError where there is none."""
    found = find_file("loras", name)
    if found is None:
        raise InputError(
            f"There is no LoRA {name!r} in the loras folder; choose another, or save one first."
        )
    return found


def recipe_names() -> list[str]:
    """The recipe files of the user, by name relative to their folder."""
    model_folders(RECIPES)
    return [n for n in folder_paths.get_filename_list(RECIPES) if n.lower().endswith(".json")]


def recipe_path(name: str) -> Path:
    """The recipe file of this name; raises InputError where there is none."""
    found = find_file(RECIPES, name) if name in recipe_names() else None
    if found is None:
        raise InputError(
            f"There is no recipe {name!r} in models/{RECIPES}; choose another, or put it there."
        )
    return found


def aesthetic_names() -> list[str]:
    """The aesthetic predictors of the user, by name relative to their folder."""
    model_folders(AESTHETIC)
    endings = (".safetensors", ".pth", ".pt")
    names = folder_paths.get_filename_list(AESTHETIC)
    return [name for name in names if name.lower().endswith(endings)]


def clip_names() -> list[str]:
    """The files that may hold a CLIP model's text half, each once."""
    kinds = ("clip_vision", "text_encoders")
    names = [name for kind in kinds for name in folder_paths.get_filename_list(kind)]
    return [*dict.fromkeys(name for name in names if name.lower().endswith(".safetensors"))]


def clip_path(name: str) -> Path:
    """The file of a CLIP model; raises InputError where there is none."""
    found = find_file("clip_vision", name) or find_file("text_encoders", name)
    if found is None:
        raise InputError(
            f"There is no CLIP model {name!r} in models/clip_vision or models/text_encoders; "
            "choose another, or put it there."
        )
    return found


def aesthetic_path(name: str) -> Path:
    """The aesthetic predictor of this name; raises InputError where there is none."""
    found = find_file(AESTHETIC, name) if name in aesthetic_names() else None
    if found is None:
        raise InputError(
            f"There is no aesthetic predictor {name!r} in models/{AESTHETIC}; choose another, or "
            "put it there."
        )
    return found


def new_report_folder(name: str) -> Path:
    """The first of NAME_00001 and so on that is not there yet, below ComfyUI's output folder.

    Raises InputError for a name that is none.
    """
    root, stem = output_folder() / "magicapture" / "evaluations", safe_name(name, "report's name")
    number = 1
    while (folder := root / f"{stem}_{number:05}").exists():
        number += 1
    return folder


def face_files(role: Role) -> dict[str, Path]:
    """The model files that may serve a role, by relative name; the best known ones first."""
    return files(role, face_places())


def face_file(role: Role, name: str) -> Path:
    """The file of this name for a role, or the one that AUTO or SECOND stands for.

    Raises StorageError that says what to get, from where, where there is none.
    """
    if name in (AUTO, SECOND):
        first = best(role, face_places())
        return first if name == AUTO else best(role, face_places(), other_than=first)
    found = face_files(role).get(name)
    if found is None and not face_files(role):
        raise missing(role, face_places())
    if found is None:
        raise InputError(
            f"There is no {TITLES[role]} {name!r} in the model folders; choose {AUTO!r}, or "
            "another from the list."
        )
    return found


def face_file_if_any(role: Role, name: str) -> tuple[Path | None, str]:
    """As `face_file`; for OR_NONE the best file that can be run, or None and a sentence on it."""
    return best_or_none(role, face_places()) if name == OR_NONE else (face_file(role, name), "")


def face_stamp(role: Role, name: str) -> str:
    """A text that changes when the file that a name stands for does."""
    try:
        path, why = face_file_if_any(role, name)
    except StorageError as error:
        return str(error)
    return why if path is None else f"{path} {stamp(path)}"


def face_places() -> Places:
    """The folders that models of faces may lie in."""
    return {kind: model_folders(kind) for kind in folders()}


def stamp(path: Path) -> str:
    """A text that changes when the file, or any file of the folder, does."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return repr([(os.fspath(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files])
