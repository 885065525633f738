"""ComfyUI's own nodes that find and mask people, and whether their files are there."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import folder_paths

from ...magicapture.faces.models import ModelFile
from .host import find_file
from .mediapipe import MEDIAPIPE


@dataclass(frozen=True)
class _Part:
    """What ComfyUI has: the module of its nodes, its file, and what to do with what it finds."""

    module: str
    file: ModelFile
    use: str


_PARTS = (
    _Part(
        "nodes_mediapipe",
        MEDIAPIPE.files[0],
        "choose it in Load Face Detector; or Detect Face Landmarks (MediaPipe) into Load Photo "
        "Set's landmarks, with Draw Face Mask (MediaPipe) into its face_masks",
    ),
    _Part(
        "nodes_sam3",
        ModelFile(
            "sam3.1_multiplex_fp16.safetensors",
            "checkpoints",
            "the repository Comfy-Org/sam3.1",
            "SAM License",
            rank=0,
            names=("*sam3*",),
        ),
        'SAM3 Detect, told "face", into Load Photo Set\'s face_masks',
    ),
    _Part(
        "nodes_bg_removal",
        ModelFile(
            "birefnet.safetensors",
            "background_removal",
            "the repository Comfy-Org/BiRefNet",
            "MIT",
            rank=0,
            names=("*birefnet*",),
        ),
        "Remove Background marks the whole person, hair and clothes too: for face_masks only if "
        "all of it is to be learned",
    ),
)


def own_parts() -> str:
    """What ComfyUI's own nodes can do for faces here, and which of their files are missing."""
    lines = ["ComfyUI's own: its nodes find faces and masks, which Load Photo Set takes"]
    known = [part for part in _PARTS if find_spec(f"comfy_extras.{part.module}")]
    for part in known:
        there = [path for name in _listed(part.file) if (path := find_file(part.file.folder, name))]
        lines += [f"  found    {path}: {part.use}" for path in there]
        if not there:
            lines.append(f"  missing  {part.file}: {part.use}")
    if not known:
        lines.append("  This ComfyUI has none of them; newer ones do.")
    return "\n".join(lines)


def _listed(file: ModelFile) -> list[str]:
    """The files that ComfyUI lists under a name of this one's."""
    if file.folder not in folder_paths.folder_names_and_paths:
        return []
    names = folder_paths.get_filename_list(file.folder)
    return [name for name in names if file.is_called(name.replace("\\", "/").rpartition("/")[2])]
