"""The head cut out and pasted back, against facexlib's own code."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.faces.align import FFHQ_TEMPLATE
from magicapture.faces.protocols import Part
from magicapture.refine.paste import (
    BORDER,
    cut_out,
    drawn_mask,
    feathered,
    parsed_mask,
    put_back,
)


def landmarks(scale: float, angle: float, x: float, y: float) -> Tensor:
    """A face `scale` times the template's size, turned, with its head's middle at (x, y)."""
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    turn = torch.tensor([[a, -b], [b, a]], dtype=torch.float32)
    return (FFHQ_TEMPLATE - 255.5) @ turn.T + torch.tensor([x, y])


def smooth(height: int, width: int) -> Tensor:
    """A picture without detail finer than OpenCV 4's rounding of positions to 1/32 pixel."""
    return torch.nn.functional.avg_pool2d(torch.rand(1, 3, height, width), 9, 1, 4)[0]


def oval() -> Tensor:
    """The mask of an upright face without a parser."""
    return drawn_mask(torch.zeros(1, 3, 512, 512), FFHQ_TEMPLATE[None])


FACES = [
    landmarks(1, 0, 300, 280),
    landmarks(1, 0.3, 310, 300),
    landmarks(0.4, -0.2, 200, 220),
    landmarks(0.8, 0.1, 40, 500),  # cut by the picture's edge, where grey is seen
]


@pytest.mark.parametrize("points", FACES)
def test_the_crop_is_facexlibs(points, facexlib) -> None:
    image = smooth(560, 620)
    head, matrix = cut_out(image, points)
    other = facexlib.helper(image, points)
    np.testing.assert_allclose(matrix[0].numpy(), other.affine_matrices[0], rtol=1e-3, atol=2e-3)
    expected = torch.from_numpy(other.cropped_faces[0][..., ::-1].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(head[0], expected, atol=1 / 255, rtol=0)


class Halves:
    """A parser for which skin is left of a column, and clothes right of it."""

    def __call__(self, heads: Tensor) -> Tensor:
        parts = torch.full((len(heads), *heads.shape[-2:]), int(Part.CLOTHES))
        parts[..., :300] = int(Part.SKIN)
        return parts


class HalvesForFacexlib(torch.nn.Module):
    """The same as ParseNet's scores: 1 is skin, 18 is cloth."""

    def forward(self, heads: Tensor) -> tuple[Tensor]:
        scores = torch.zeros(len(heads), 19, *heads.shape[-2:])
        scores[:, 18], scores[:, 1, :, :300] = 0.5, 1
        return (scores,)


@pytest.mark.parametrize("points", [FACES[0], FACES[1], landmarks(1.3, -0.2, 330, 290)])
def test_the_pasted_picture_is_facexlibs(points, facexlib) -> None:
    image = smooth(620, 700)
    head, matrix = cut_out(image, points)
    after = 0.6 * head + 0.4 * smooth(512, 512) ** 2
    pasted = put_back(after, parsed_mask(Halves(), after), matrix, image.shape[-2:]).onto(image)
    other = facexlib.helper(image, points)
    other.use_parse, other.face_parse = True, HalvesForFacexlib()
    other.add_restored_face(facexlib.bgr(after[0]))
    expected = other.paste_faces_to_input_image()[..., ::-1].astype(np.float32)
    got = pasted.permute(1, 2, 0).numpy() * 255
    assert np.abs(expected - facexlib.bgr(image)[..., ::-1]).max() > 20, "nothing was pasted"
    # facexlib cuts off what is after the point: half a step, beside the one that is allowed.
    assert np.abs(got - 0.5 - expected).max() <= 0.5 + 1


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("points", [*FACES, landmarks(0.08, 0.1, 50, 60)])
def test_outside_the_mask_every_bit_stays(points, strength) -> None:
    image = torch.rand(3, 560, 620)
    head, matrix = cut_out(image, points)
    patch = put_back(1 - head, oval(), matrix, image.shape[-2:])
    result = patch.onto(image, strength)
    whole = torch.zeros(560, 620)
    whole[patch.place] = patch.mask[0]
    changed = (result != image).any(dim=0)
    assert bool(changed.any()) and not bool((changed & (whole == 0)).any())
    assert 0 < float((whole > 0).float().mean()) < 0.9
    rows, columns = patch.place
    under = image[:, rows, columns]
    expected = under + strength * patch.mask * (patch.pixels - under)
    torch.testing.assert_close(result[:, rows, columns], expected)


def test_an_unchanged_head_leaves_the_picture(photo) -> None:
    image, face = photo
    head, matrix = cut_out(image, face.landmarks)
    result = put_back(head, oval(), matrix, image.shape[-2:]).onto(image)
    assert (result - image).abs().mean() < 1 / 255


def test_a_small_face_does_not_alias() -> None:
    """A head of 25 pixels gets the mean of the fine stripes that it shows, not some of them."""
    image = torch.zeros(3, 100, 100)
    _, matrix = cut_out(image, landmarks(0.05, 0, 50, 50))
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 512, 512)
    patch = put_back(stripes, torch.ones(1, 1, 512, 512), matrix, (100, 100))
    inner = patch.pixels[:, 6:-6, 6:-6]
    assert inner.numel() > 100
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.05, rtol=0)


def test_a_head_beside_the_picture_changes_nothing() -> None:
    image = torch.rand(3, 60, 60)
    head, matrix = cut_out(image, landmarks(0.1, 0, 900, -700))
    patch = put_back(head, oval(), matrix, (60, 60))
    assert torch.equal(patch.onto(image), image)


def test_the_mask_falls_to_nothing_at_the_heads_border() -> None:
    mask = feathered(torch.ones(1, 1, 512, 512))
    assert float(mask[..., BORDER:-BORDER, BORDER:-BORDER].min()) > 0.99
    mask[..., BORDER:-BORDER, BORDER:-BORDER] = 0
    assert not mask.any()


def test_feathering_is_opencvs_blur() -> None:
    mask = (smooth(512, 512)[:1] > 0.5).float()
    expected = mask[0].numpy()
    for _ in range(2):
        expected = cv2.GaussianBlur(expected, (101, 101), 11)
    got = feathered(mask[None])[0, 0, BORDER:-BORDER, BORDER:-BORDER]
    wanted = torch.from_numpy(expected[BORDER:-BORDER, BORDER:-BORDER])
    torch.testing.assert_close(got, wanted, atol=1 / 255, rtol=0)


def test_the_drawn_mask_covers_the_landmarks_and_little_else() -> None:
    mask = oval()[0, 0]
    x, y = FFHQ_TEMPLATE.round().long().unbind(-1)
    assert float(mask[y, x].min()) > 0.95
    assert 0.2 < float(mask.mean()) < 0.4
    assert float(mask[:60].max()) < 0.1, "hair and background above the head"


def test_the_drawn_mask_follows_a_turned_head() -> None:
    turned = FFHQ_TEMPLATE + torch.tensor([[0, 0], [0, 0], [40.0, 0], [0, 0], [0, 0]])
    columns = torch.arange(512)
    straight, moved = (
        (mask[0, 0].sum(dim=0) * columns).sum() / mask.sum()
        for mask in (oval(), drawn_mask(torch.zeros(1, 3, 512, 512), turned[None]))
    )
    assert abs(float(moved - straight)) > 10


def test_bad_strength_is_refused() -> None:
    image = torch.rand(3, 60, 60)
    head, matrix = cut_out(image, landmarks(0.1, 0, 30, 30))
    with pytest.raises(InputError, match="strength"):
        put_back(head, oval(), matrix, (60, 60)).onto(image, 1.5)
