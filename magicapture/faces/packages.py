"""The packages that run models of faces, and the one command that installs them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ..errors import MagiCaptureError
from .content import first_line

FACES = ("insightface", "facexlib", "onnx", "onnx2torch")
"""What the extra `faces` installs; requirements-faces.txt holds the same.

onnxruntime is not among them: insightface brings it, and beside onnxruntime-gpu, which others use,
it would put the GPU out of reach.
"""

_LIST = Path(__file__).resolve().parents[2] / "requirements-faces.txt"


def lacking(needed: Mapping[str, str]) -> list[str]:
    """Those of some packages, each with its module, that are not installed."""
    return [name for name, module in needed.items() if find_spec(module) is None]


def install_command(names: Sequence[str] = FACES) -> str:
    """What to run to install packages for this very Python: all of FACES, if one of them is.

    facexlib and insightface ask for opencv-python. Beside OpenCV of another name, as
    opencv-contrib-python is, pip would write it over that and replace numpy: then none is asked.
    """
    wanted = [name for name in names if name not in FACES]
    if len(wanted) < len(names):
        wanted += ["-r", str(_LIST)] if _LIST.is_file() else [*FACES]
        if find_spec("cv2") and not _installed("opencv-python"):
            wanted.append("--no-deps")
    words = [sys.executable or "python", "-m", "pip", "install", *wanted]
    return " ".join(f'"{word}"' if set(word) & set(" []()&") else word for word in words)


def _installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def needs(doing: str, names: Sequence[str], error: ImportError | None = None) -> MagiCaptureError:
    """The error for what needs packages that are not installed, or do not work."""
    why = f" ({first_line(error)})" if error else ""
    return MagiCaptureError(
        f"{doing} needs {' and '.join(names)}{why}; run {install_command(names)}"
    )
