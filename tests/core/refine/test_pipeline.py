"""From a file to a pasted face, per architecture, against facexlib's steps and the plain network.

Where the packages gfpgan and realesrgan import (the extra `parity`), their own code is the other
side; elsewhere those tests skip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.RestoreFormer import RestoreFormer
from torch import Tensor, nn

from magicapture.faces.align import FFHQ_TEMPLATE, invert, transform
from magicapture.faces.protocols import Face, Part
from magicapture.refine.models import FaceRestorer, load_image_model
from magicapture.refine.paste import cut_out
from magicapture.refine.restore import restore_faces
from magicapture.refine.upscale import Tiling, upscale

MISSING = "the package {} does not import here; pip install 'magicapture[parity]'"


def gfpgan() -> nn.Module:
    return GFPGAN()


def restoreformer() -> nn.Module:
    return RestoreFormer(
        n_embed=32, embed_dim=32, z_channels=32, ch=32, ch_mult=(1,) * 6, num_res_blocks=1
    )


def codeformer() -> nn.Module:
    architecture = pytest.importorskip(
        "spandrel_extra_arches.architectures.CodeFormer",
        reason="CodeFormer needs spandrel_extra_arches",
    )
    return architecture.CodeFormer(n_layers=1, connect_list=["32"])


def saved(network: nn.Module, folder: Path) -> Path:
    """A file as GFPGAN publishes them."""
    torch.save({"params_ema": network.state_dict()}, folder / "model.pth")
    return folder / "model.pth"


def turned() -> Tensor:
    """Landmarks (5,2) of a head of exactly 512 pixels in a larger picture, turned a little.

    A similarity of the template, for which least squares (ours) and least median of squares
    (facexlib's) agree; at this size neither crop nor paste shrinks, which facexlib does not smooth.
    """
    a, b = np.cos(0.15), np.sin(0.15)
    motion = torch.tensor([[[a, -b, 40.0], [b, a, -30.0]]], dtype=torch.float32)
    return transform(invert(motion), FFHQ_TEMPLATE[None])[0]


FACE = (..., slice(120, 430), slice(110, 400))
"""Where the parsers below see a face: away from the head's border, at which a mask ends in a step
that OpenCV samples at 1/32 of a pixel."""


def face_in_the_middle(heads: Tensor) -> Tensor:
    parts = torch.zeros(len(heads), *heads.shape[-2:], dtype=torch.int64)
    parts[FACE] = int(Part.SKIN)
    return parts


class FaceInTheMiddle(nn.Module):
    """`face_in_the_middle` as ParseNet's scores."""

    def forward(self, heads: Tensor) -> tuple[Tensor]:
        scores = torch.zeros(len(heads), 19, *heads.shape[-2:])
        scores[:, 0] = 0.5
        scores[:, 1][FACE] = 1
        return (scores,)


def by_facexlib(
    facexlib: Any, network: nn.Module, image: Tensor, points: Tensor, head: Tensor
) -> Any:
    """Crop, restored face and pasted picture (H,W,3) RGB in 0..255, by facexlib and the network.

    head (3,512,512): what the network is shown, our crop; an untrained network's nearest code
    jumps with differences that do not show. The pasted picture's digits after the point are cut
    off.
    """
    helper = facexlib.helper(image, points)
    options = {"randomize_noise": False} if isinstance(network, GFPGAN) else {}
    with torch.no_grad():
        restored = network(2 * head[None] - 1, **options)[0][0].clamp(-1, 1)
    restored = pixels((restored + 1) / 2)
    helper.add_restored_face(restored[..., ::-1].copy())
    helper.use_parse, helper.face_parse = True, FaceInTheMiddle()
    pasted = helper.paste_faces_to_input_image()
    return helper.cropped_faces[0][..., ::-1], restored, pasted[..., ::-1].astype(np.float32)


def pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy() * 255


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("make", [gfpgan, restoreformer, codeformer])
def test_crop_face_and_picture_are_those_of_facexlib(make, facexlib, photo, tmp_path) -> None:
    torch.manual_seed(1)
    network = make().eval()
    model = load_image_model(saved(network, tmp_path))
    image = nn.functional.interpolate(photo[0][None], (700, 660), mode="bilinear")[0]
    points = turned()
    face = Face(torch.tensor([0.0, 0, 1, 1]), points, 1)
    ours = restore_faces(image, [face], FaceRestorer(model), face_in_the_middle)
    head = ours.faces[0].before
    crop, restored, pasted = by_facexlib(facexlib, network, image, points, head)
    assert np.abs(pixels(head) - crop).max() <= 1
    assert np.abs(pixels(ours.faces[0].after) - restored).max() <= 1
    assert np.abs(pasted - pixels(image)).max() > 30, "nothing was pasted"
    assert np.abs(pixels(ours.image) - 0.5 - pasted).max() <= 0.5 + 1
    outside = ours.mask[0] == 0
    assert torch.equal(ours.image[:, outside], image[:, outside])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_gfpgan_equals_the_package(facexlib, photo, tmp_path, renamed_torchvision) -> None:
    package = pytest.importorskip("gfpgan", reason=MISSING.format("gfpgan"), exc_type=ImportError)
    torch.manual_seed(2)
    path = saved(GFPGAN(), tmp_path)
    image = photo[0]
    head, _ = cut_out(image, photo[1].landmarks)
    ours = FaceRestorer(load_image_model(path))(head)
    theirs = package.GFPGANer.__new__(package.GFPGANer)  # its constructor fetches a detector
    theirs.device = torch.device("cpu")
    from gfpgan.archs.gfpganv1_clean_arch import GFPGANv1Clean

    theirs.gfpgan = GFPGANv1Clean(  # as GFPGANer builds the published ones
        512,
        channel_multiplier=2,
        fix_decoder=False,
        input_is_latent=True,
        different_w=True,
        sft_half=True,
    ).eval()
    theirs.gfpgan.load_state_dict(torch.load(path, weights_only=True)["params_ema"])
    theirs.face_helper = facexlib.helper(image, photo[1].landmarks)
    face = facexlib.bgr(head[0])
    _, (restored,), _ = theirs.enhance(face, has_aligned=True, paste_back=False)
    assert restored.std() > 10
    assert np.abs(pixels(ours[0]) - restored[..., ::-1]).max() <= 1


def test_super_resolution_equals_the_package(photo, tmp_path, renamed_torchvision) -> None:
    package = pytest.importorskip(
        "realesrgan", reason=MISSING.format("realesrgan"), exc_type=ImportError
    )
    from realesrgan.archs.srvgg_arch import SRVGGNetCompact

    torch.manual_seed(3)
    path = tmp_path / "model.pth"
    torch.save({"params": Compact(num_feat=16, num_conv=3, upscale=4).state_dict()}, path)
    network = SRVGGNetCompact(3, 3, 16, 3, 4)
    theirs = package.RealESRGANer(4, str(path), model=network, pre_pad=0, device="cpu")
    image = photo[0][:, 200:300, 180:300]
    expected, _ = theirs.enhance((pixels(image)[..., ::-1]).round().astype(np.uint8), outscale=4)
    ours = upscale(load_image_model(path), image[None], Tiling(64, 16, 4))
    assert np.abs(pixels(ours[0]) - expected[..., ::-1]).max() <= 1
