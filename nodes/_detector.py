"""The face detector of nodes: the one connected, or the best there is."""

from __future__ import annotations

from comfy_api.latest import io

from ..magicapture.faces.detect import load_detector
from ..magicapture.faces.protocols import Detector
from ._comfy.files import AUTO, face_file
from ._sockets import DetectorSocket


def detector_input() -> io.Custom.Input:
    """The socket that a detector may be connected to."""
    return DetectorSocket.Input(
        "detector",
        optional=True,
        tooltip="Finds the faces. Without one: the best found; YuNet comes with the pack.",
    )


def detector_or_best(detector: Detector | None) -> Detector:
    """The detector connected, or else the best one found; one comes with the pack."""
    return detector or load_detector(face_file("detector", AUTO))
