"""Real portraits with their landmarks, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Portrait:
    """An image (1,3,H,W) in 0..1, YuNet's landmarks (1,5,2) and its box (x, y, width, height)."""

    image: Tensor
    landmarks: Tensor
    box: tuple[float, ...]


def _portrait(path: Path, detector: cv2.FaceDetectorYN) -> Portrait:
    picture = cv2.imread(str(path))
    detector.setInputSize(picture.shape[1::-1])
    faces = detector.detect(picture)[1]
    face = faces[faces[:, 2].argmax()]
    image = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    return Portrait(image, torch.from_numpy(face[4:14].reshape(1, 5, 2)), tuple(face[:4]))


@pytest.fixture(scope="session")
def portraits(shared_assets: Path) -> tuple[list[Portrait], list[Portrait]]:
    """Eight photos of one person, and five of others."""
    model = shared_assets / "face" / "yunet_s_640_640.onnx"
    detector = cv2.FaceDetectorYN.create(str(model), "", (512, 512), 0.6)
    person = sorted((shared_assets / "photos" / "person").glob("foreground*"))[1:9]
    others = sorted((shared_assets / "photos" / "styles").glob("*.jpg"))[1:6]
    return [_portrait(p, detector) for p in person], [_portrait(p, detector) for p in others]
