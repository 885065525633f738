"""Small networks of the real architectures, real faces, and facexlib's own way with them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from spandrel import ImageModelDescriptor
from spandrel.architectures.Compact import Compact
from spandrel.architectures.GFPGAN import GFPGAN, GFPGANArch
from torch import Tensor, nn

from magicapture.faces.align import FFHQ_TEMPLATE
from magicapture.faces.protocols import Face
from magicapture.refine.models import load_image_model


@pytest.fixture(scope="session")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Build a small Real-ESRGAN network: a file of random weights, loaded by the real path.

    compact(scale=2, channels=3): it sees 4 pixels around each.
    """

    def make(scale: int = 2, channels: int = 3) -> Any:
        torch.manual_seed(scale)
        network = Compact(
            num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=2, upscale=scale
        )
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        path = tmp_path_factory.mktemp("compact") / "compact.pth"
        torch.save({"params": network.state_dict()}, path)
        return load_image_model(path)

    return make


@pytest.fixture(scope="session")
def small_gfpgan() -> ImageModelDescriptor[GFPGAN]:
    """GFPGAN with an eighth of its channels and random weights, for 512x512 as always.

    Not from a file: spandrel reads GFPGAN's only size, which takes a CPU a minute.
    """
    torch.manual_seed(3)
    network = GFPGAN(narrow=0.125, num_style_feat=64, num_mlp=1)
    return ImageModelDescriptor(
        network,
        network.state_dict(),
        architecture=GFPGANArch(),
        purpose="FaceSR",
        tags=[],
        supports_half=False,
        supports_bfloat16=True,
        scale=1,
        input_channels=3,
        output_channels=3,
    ).eval()


@pytest.fixture(scope="session")
def photo(shared_assets: Path) -> tuple[Tensor, Face]:
    """A real photo (3,512,512) and its face, found by OpenCV's own YuNet."""
    folder = shared_assets / "photos" / "person"
    picture = cv2.imread(str(folder / "foreground__04.jpg"))
    model = shared_assets / "face" / "yunet_s_640_640.onnx"
    detector = cv2.FaceDetectorYN.create(str(model), "", picture.shape[1::-1], 0.6)
    row = torch.from_numpy(detector.detect(picture)[1][0])
    box = torch.cat([row[:2], row[:2] + row[2:4]])
    image = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1).float() / 255
    return image, Face(box, row[4:14].view(5, 2), float(row[14]))


def _bgr(image: Tensor) -> np.ndarray:
    """(3,H,W) in 0..1 as facexlib takes pictures, but without rounding to integers."""
    return (image.permute(1, 2, 0).numpy()[..., ::-1] * 255).copy()


def _helper(image: Tensor, points: Tensor) -> Any:
    """facexlib's helper past its constructor, which would look for three networks' files."""
    from facexlib.utils.face_restoration_helper import FaceRestoreHelper

    made = FaceRestoreHelper.__new__(FaceRestoreHelper)
    made.clean_all()
    made.upscale_factor, made.face_size, made.device = 1, (512, 512), torch.device("cpu")
    made.pad_blur, made.use_parse = False, False
    made.face_template = FFHQ_TEMPLATE.numpy().astype(float)
    made.read_image(_bgr(image))
    made.all_landmarks_5 = [points.numpy().astype(float)]
    made.align_warp_face()
    made.get_inverse_affine()
    return made


@pytest.fixture(scope="session")
def facexlib() -> SimpleNamespace:
    """facexlib.helper(image, landmarks): its aligned face; facexlib.bgr(image): its pictures."""
    pytest.importorskip("facexlib", reason="needs facexlib to compare with")
    return SimpleNamespace(helper=_helper, bgr=_bgr)


@pytest.fixture
def renamed_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """basicsr, which gfpgan and realesrgan import, asks for a module by the name it had before
    torchvision 0.17; here it is found under that name, too."""
    from torchvision.transforms import _functional_tensor

    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional_tensor", _functional_tensor)
