"""YuNet, run by OpenCV."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..content import Content
from ..models import ONNX, ModelFile, ModelKind
from ..square import SIDES, SquareDetector


def _recognises(content: Content) -> bool:
    graph = content.graph
    return bool(graph and graph.picture and {"obj_8", "obj_16", "obj_32"} <= set(graph.outputs))


def _load(content: Content) -> SquareDetector:
    import cv2

    assert content.graph and content.graph.picture
    side = content.graph.picture[1] or SIDES[0]
    # From memory, since OpenCV cannot open every path on every system.
    model, size = np.fromfile(content.path, np.uint8), (side, side)
    network = cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), size, 0.6, 0.3)

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = network.detect(picture)[1]
        if rows is None:
            return np.empty((0, 15), np.float32)
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        return np.concatenate([corners, rows[:, 4:]], 1)

    return SquareDetector(find, side)


YUNET = ModelKind(
    "detector",
    "YuNet (OpenCV)",
    files=(
        ModelFile(
            "face_detection_yunet_2023mar.onnx",
            "facexlib",
            "the repository opencv/opencv_zoo, folder models/face_detection_yunet",
            "MIT",
            rank=50,
            names=("*yunet*.onnx",),
        ),
    ),
    endings=ONNX,
    packages={"opencv-python": "cv2", "onnx": "onnx"},
    recognises=_recognises,
    load=_load,
)
