"""ComfyUI as the host: model folders, progress, previews and Cancel."""

from __future__ import annotations

import html
import logging
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
from PIL import Image

from ...magicapture.errors import MagiCaptureError

logger = logging.getLogger(__name__)

Cancelled = management.InterruptProcessingException
"""Raised when the user cancels; an `Exception`, so a broad except would swallow it."""

_PREVIEW_SIDE = 1024  # pixels; larger previews are scaled down


def model_folders(kind: str) -> list[Path]:
    """The folders of a kind of model ("loras", "insightface"); new files go into the first.

    models/<kind> is always among them: ComfyUI forgets it for a kind of ours that the user's
    extra_model_paths.yaml names.
    """
    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]


def find_file(kind: str, name: str) -> Path | None:
    """The file of this name in the kind's folders, or None; a name cannot lead out of them.

    A link may: that is how people share models between programs.
    """
    model_folders(kind)
    found = folder_paths.get_full_path(kind, name)
    return None if found is None else Path(found)


def host_versions() -> dict[str, str]:
    """The versions of ComfyUI and of its frontend, as far as they tell."""
    from comfyui_version import __version__

    try:
        return {"ComfyUI": __version__, "frontend": metadata.version("comfyui_frontend_package")}
    except metadata.PackageNotFoundError:
        return {"ComfyUI": __version__}


def output_folder() -> Path:
    """ComfyUI's folder for results."""
    return Path(folder_paths.get_output_directory())


def check_cancel() -> None:
    """Raise `Cancelled` if the user has cancelled the run."""
    management.throw_exception_if_processing_interrupted()


def node_id(node: Any) -> str | None:
    """The running node's id, which progress goes to; None outside the executor.

    The node's schema must ask for `io.Hidden.unique_id`.
    """
    return getattr(getattr(node, "hidden", None), "unique_id", None)


def show_text(text: str, node: str | None) -> None:
    """Show a plain text under the node; nothing happens outside the executor.

    The frontend takes it for HTML, and the older ones run what script a photo's name may hold.
    """
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and node is not None:
        server.send_progress_text(html.escape(text, quote=False), node)


def titled(error: MagiCaptureError, title: str) -> MagiCaptureError:
    """One of our errors under a node's title, without our module's path.

    ComfyUI would print the path before the text.
    """
    kind = type(error)
    bare = type(kind.__name__, (kind,), {"__module__": "builtins"})
    return bare(f"{title}: {error}")


class Notes:
    """What a node has to say of a sampling: in the log, and together under the node."""

    def __init__(self, title: str, node: str | None) -> None:
        self._title, self._node = title, node
        self._said: list[str] = []

    def begin(self) -> None:
        """A sampling begins, in which each sentence may be said once."""
        self._said = []

    def say(self, text: str) -> None:
        """A warning, said once in a sampling."""
        if text not in self._said:
            self._said.append(text)
            logger.warning("%s: %s", self._title, text)
            show_text("\n".join(self._said), self._node)


class Progress:
    """A node's progress bar, with a preview picture."""

    def __init__(self, total: int, node: str | None = None) -> None:
        self.total = total
        self._bar = comfy.utils.ProgressBar(total, node_id=node)

    def update(self, done: int, preview: Image.Image | None = None) -> None:
        """Show that `done` of the total is done; raises `Cancelled` if the user has cancelled."""
        check_cancel()  # the bar asks as well, but not at every update
        shown = None
        if preview is not None:  # ComfyUI would also enlarge a smaller one
            shown = ("JPEG", preview, min(_PREVIEW_SIDE, max(preview.size)))
        self._bar.update_absolute(done, preview=shown)
