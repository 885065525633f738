"""Masks of things by a salient-object network of the user's, which the package rembg runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError, StorageError
from ..faces.content import Content, first_line
from ..faces.packages import lacking, needs
from ..images import to_pil
from ..images.pillow import from_pil
from ..memory import refuse_large

PACKAGES = {"rembg": "rembg", "onnx": "onnx", "onnxruntime": "onnxruntime"}
_SESSIONS = {(320, 320): "u2net_custom", (1024, 1024): "dis_custom"}
"""rembg's sessions that run a file of the user's and download none, by the pictures they take."""

_EXPECTED = "U^2-Net's (u2net.onnx, 320 px) or IS-Net's (isnet-general-use.onnx, 1024 px)"

CutOut = Callable[[Tensor], Tensor]
"""A picture (3,H,W) in 0..1 to the mask (1,H,W) of what stands out in it."""


def load_cut_out(path: Path) -> CutOut:
    """The network in an ONNX file, U^2-Net or IS-Net.

    Raises StorageError for a file that is missing or damaged, InputError for another network,
    MagiCaptureError where rembg is not installed.
    """
    if not path.is_file():
        raise StorageError(
            f"There is no file {path}; expected {_EXPECTED}, which rembg's releases have. Nothing "
            "is downloaded for you."
        )
    if absent := lacking(PACKAGES):
        raise needs(f"Cutting out with {path.name}", absent)
    content = Content(path)
    kind = _SESSIONS.get((content.graph and content.graph.picture) or (0, 0))
    if kind is None or (kind == "dis_custom" and "isnet" not in path.name.lower()):
        raise InputError(f"{content} cannot be used to cut out; expected {_EXPECTED}.")
    try:
        import rembg

        session: Any = rembg.new_session(kind, model_path=str(path))
    except Exception as error:  # onnxruntime's own types
        refuse_large(path, error)
        raise InputError(
            f"{path.name} does not run ({first_line(error)}). rembg may want it in a folder of its "
            "own: put it there, or name its folder in REMBG_HOME."
        ) from error

    def cut_out(image: Tensor) -> Tensor:
        return from_pil(rembg.remove(to_pil(image), session=session, only_mask=True).convert("L"))

    return cut_out
