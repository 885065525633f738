"""Face detectors from the user's files: SCRFD, RetinaFace and YuNet, all asked in one way.

The file's content says which network it is. All run on the CPU: a set of photos takes seconds, and
the GPU's memory stays free for the model.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, MagiCaptureError, StorageError
from .square import SIDES, SquareDetector
from .weights import filled, read_weights

_ONE_MEGABYTE = "a372f3cd5cfde122"  # how the hash of that file's first layer begins


def load_detector(path: str | Path) -> SquareDetector:
    """A face detector from a file: SCRFD or YuNet (.onnx), RetinaFace (.pth, .safetensors).

    Raises StorageError for a file that is missing or damaged, InputError for one that finds no
    faces with five landmarks, MagiCaptureError where the package that runs it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no face detector at {path}; check its name and folder.")
    with torch.inference_mode(False):
        return _from_onnx(path) if path.suffix.lower() == ".onnx" else _retinaface(path)


def _from_onnx(path: Path) -> SquareDetector:
    try:
        import onnx

        graph = onnx.load(str(path), load_external_data=False).graph
    except ImportError as error:
        raise _needs("onnx", path) from error
    except Exception as error:  # protobuf's own error types
        raise StorageError(f"{path} is damaged or not an ONNX model; download it again.") from error
    outputs = [output.name for output in graph.output]
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [
        [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in weights
    ]
    if {"obj_8", "obj_16", "obj_32"} <= set(outputs):  # SCRFD may call its own kps_8, too
        return _yunet(path, shapes[0])
    if len(outputs) in (9, 15):
        return _scrfd(path, shapes[0])
    raise InputError(
        f"{path.name} has the outputs {', '.join(outputs[:6]) or 'none'}; expected a face detector "
        "with five landmarks: SCRFD (9 or 15 outputs, as in buffalo_l and antelopev2) or YuNet."
    )


def _yunet(path: Path, shape: Sequence[int]) -> SquareDetector:
    try:
        import cv2
    except ImportError as error:
        raise _needs("opencv-python", path) from error
    side = shape[-1] or SIDES[0]
    # From memory, since OpenCV cannot open every path on every system.
    model, size = np.fromfile(path, np.uint8), (side, side)
    network = cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), size, 0.6, 0.3)

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = network.detect(picture)[1]
        if rows is None:
            return np.empty((0, 15), np.float32)
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        return np.concatenate([corners, rows[:, 4:]], 1)

    return SquareDetector(find, side)


def _scrfd(path: Path, shape: Sequence[int]) -> SquareDetector:
    try:
        import onnxruntime
        from insightface.model_zoo.scrfd import SCRFD
    except ImportError as error:
        raise _needs("insightface", path) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network: Any = SCRFD(str(path), session, static_shape_sessions=False)

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        boxes, points = network.detect(picture, input_size=picture.shape[:2])
        return np.concatenate([boxes[:, :4], points.reshape(len(boxes), 10), boxes[:, 4:]], 1)

    return SquareDetector(find, shape[-1] or None)


def _retinaface(path: Path) -> SquareDetector:
    weights = read_weights(path)
    mobile = "body.stage1.0.0.weight" in weights
    if not mobile and "body.layer4.2.conv3.weight" not in weights:
        raise InputError(
            f"{path.name} is no RetinaFace with resnet50 or mobilenet0.25; expected "
            "detection_Resnet50_Final.pth or detection_mobilenet0.25_Final.pth."
        )
    try:
        from facexlib.detection.retinaface import RetinaFace
    except ImportError as error:
        raise _needs("facexlib", path) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a torchvision argument; no weights are fetched
        network: Any = RetinaFace("mobile0.25" if mobile else "resnet50", device="cpu")
    filled(network, weights, path.name)
    sides = SIDES
    if mobile and _is_one_megabyte(weights):
        sides = (320, 160, 640)
        network.cfg["min_sizes"] = [[10, 20], [32, 64], [128, 256]]
        for layer in network.modules():
            if isinstance(layer, torch.nn.LeakyReLU):
                layer.negative_slope = 0.0

    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            rows = network.detect_faces(picture, conf_threshold=0.8)
        return np.concatenate([rows[:, :4], rows[:, 5:], rows[:, 4:5]], 1)

    return SquareDetector(find, sides=sides)


def _is_one_megabyte(weights: dict[str, Tensor]) -> bool:
    """Whether these are the weights of biubug6/Face-Detector-1MB-with-landmark.

    They have the names and shapes of facexlib's mobilenet0.25, but were trained at 300 px, with
    smaller anchors and with ReLU for LeakyReLU; read as facexlib's they find nothing right.
    """
    first = weights["body.stage1.0.0.weight"].float().contiguous().numpy().tobytes()
    return hashlib.sha256(first).hexdigest().startswith(_ONE_MEGABYTE)


def _needs(package: str, path: Path) -> MagiCaptureError:
    return MagiCaptureError(
        f"Reading {path.name} needs the package {package}; install it with 'pip install {package}' "
        "in the environment of ComfyUI."
    )
