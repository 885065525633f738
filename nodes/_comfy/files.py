"""ComfyUI's folders as the nodes see them: what a drop-down lists, and where a name leads."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...magicapture.errors import InputError
from .host import find_file, model_folders, output_folder

RECOGNISERS = ("insightface", "magicapture")
"""Kinds of model folder that a face recogniser may lie in."""


def input_folders() -> list[str]:
    """The folders below ComfyUI's input folder, by relative name."""
    return sorted(folder_paths.get_input_subfolders())


def input_folder(name: str) -> Path:
    """A folder below ComfyUI's input folder; raises InputError for one that is not."""
    root = Path(folder_paths.get_input_directory()).resolve()
    folder = (root / name).resolve()
    if folder == root or not folder.is_relative_to(root) or not folder.is_dir():
        raise InputError(f"There is no folder {name!r} in ComfyUI's input folder {root}.")
    return folder


def state_folder() -> Path:
    """Where cancelled runs wait to be resumed."""
    return output_folder() / "magicapture" / "runs"


def lora_names() -> list[str]:
    """The LoRA files that stock loaders list."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file of a LoRA; raises InputError where there is none."""
    found = find_file("loras", name)
    if found is None:
        raise InputError(f"There is no LoRA {name!r} in the loras folder; it may have been moved.")
    return found


def recogniser_names() -> list[str]:
    """Face embedders (.onnx, .pt, .torchscript) in the model folders, by relative name."""
    return sorted(
        {
            file.relative_to(folder).as_posix()
            for kind in RECOGNISERS
            for folder in model_folders(kind)
            if folder.is_dir()
            for file in folder.rglob("*")
            if file.suffix in (".onnx", ".pt", ".torchscript")
        }
    )


def recogniser_path(name: str) -> Path:
    """The file of a face embedder; raises InputError where there is none."""
    for kind in RECOGNISERS:
        if found := find_file(kind, name):
            return found
    raise InputError(
        f"There is no face recogniser {name!r}. Put an ArcFace ONNX file, such as buffalo_l's "
        "w600k_r50.onnx, into ComfyUI's models/insightface folder."
    )


def stamp(path: Path) -> str:
    """A text that changes when the file, or any file of the folder, does."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return repr([(os.fspath(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files])
