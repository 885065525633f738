"""SCRFD, run by insightface (0.7.3 and later) and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..content import Content
from ..models import INSIGHTFACE, ONNX, RESEARCH, ModelFile, ModelKind
from ..square import SquareDetector


def _recognises(content: Content) -> bool:
    graph = content.graph
    return bool(graph and graph.picture and len(graph.outputs) in (9, 15))  # 6, 10: no landmarks


def _load(content: Content) -> SquareDetector:
    import onnxruntime
    from insightface.model_zoo import scrfd

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # some files state output shapes that hold at 640 alone
    session = onnxruntime.InferenceSession(
        str(content.path), options, providers=["CPUExecutionProvider"]
    )
    # By the session alone, as every release takes it; given the file as well, later ones would
    # build a session of their own for every size.
    network: Any = scrfd.SCRFD(session=session)

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        boxes, points = network.detect(picture, input_size=picture.shape[:2])
        return np.concatenate([boxes[:, :4], points.reshape(len(boxes), 10), boxes[:, 4:]], 1)

    assert content.graph and content.graph.picture
    return SquareDetector(find, content.graph.picture[1] or None)


SCRFD = ModelKind(
    "detector",
    "SCRFD with five landmarks (insightface)",
    files=(
        ModelFile(
            "det_10g.onnx",
            "insightface/models/buffalo_l",
            INSIGHTFACE.format("buffalo_l"),
            RESEARCH,
            rank=10,
        ),
        ModelFile(
            "scrfd_10g_bnkps.onnx",
            "insightface/models/antelopev2",
            INSIGHTFACE.format("antelopev2"),
            RESEARCH,
            rank=20,
            names=("scrfd_*kps*.onnx", "det_*.onnx"),
        ),
    ),
    endings=ONNX,
    packages={"insightface": "insightface", "onnxruntime": "onnxruntime"},
    recognises=_recognises,
    load=_load,
)
