"""RetinaFace, run by facexlib."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..content import Content
from ..models import FACEXLIB, WEIGHTS, ModelFile, ModelKind
from ..square import SIDES, SquareDetector
from ..weights import filled

_MOBILE, _RESNET = "body.stage1.0.0.weight", "body.layer4.2.conv3.weight"

_ONE_MEGABYTE = "a372f3cd5cfde122"  # how the hash of that file's first layer begins


def _recognises(content: Content) -> bool:
    return not content.names.isdisjoint({_MOBILE, _RESNET})


def _load(content: Content) -> SquareDetector:
    from facexlib.detection.retinaface import RetinaFace

    weights = content.weights
    mobile = _MOBILE in weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a torchvision argument; no weights are fetched
        network: Any = RetinaFace("mobile0.25" if mobile else "resnet50", device="cpu")
    filled(network, weights, content.path.name)
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


def _is_one_megabyte(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of biubug6/Face-Detector-1MB-with-landmark.

    They have the names and shapes of facexlib's mobilenet0.25, but were trained at 300 px, with
    smaller anchors and with ReLU for LeakyReLU; read as facexlib's they find nothing right.
    """
    first = weights[_MOBILE].float().contiguous().numpy().tobytes()
    return hashlib.sha256(first).hexdigest().startswith(_ONE_MEGABYTE)


RETINAFACE = ModelKind(
    "detector",
    "RetinaFace with resnet50 or mobilenet0.25 (facexlib)",
    files=(
        ModelFile(
            "detection_Resnet50_Final.pth", "facexlib", FACEXLIB.format("v0.1.0"), "MIT", rank=30
        ),
        ModelFile(
            "detection_mobilenet0.25_Final.pth",
            "facexlib",
            FACEXLIB.format("v0.1.0"),
            "MIT",
            rank=40,
            names=("*mobilenet0.25_Final.pth",),
        ),
    ),
    endings=WEIGHTS,
    packages={"facexlib": "facexlib"},
    recognises=_recognises,
    load=_load,
)
