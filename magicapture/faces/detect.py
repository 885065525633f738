"""Face detectors from the user's files, all asked in one way.

The file's content says which of `detectors` it is. All run on the CPU: a set of photos takes
seconds, and the GPU's memory stays free for the model.
"""

from __future__ import annotations

from pathlib import Path

from .registry import load_model
from .square import SquareDetector
from .trial import try_detector, within_limit


def load_detector(path: str | Path) -> SquareDetector:
    """A face detector from a file: SCRFD or YuNet (.onnx), RetinaFace (.pth, .safetensors).

    It is tried on drawn faces before it is returned. Raises StorageError for a file that is
    missing or damaged, InputError for one that does not find faces with five landmarks,
    MagiCaptureError where the package that runs it is not installed.
    """

    def tried() -> SquareDetector:
        detector: SquareDetector = load_model("detector", path)
        try_detector(detector, Path(path).name)
        return detector

    return within_limit(tried, Path(path).name)
