"""The five-point alignment against least squares and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.faces.align import (
    ARCFACE_TEMPLATE,
    invert,
    landmarks_from_mask,
    similarity,
    transform,
    warp,
)


def rotation(angle: float, scale: float, x: float, y: float) -> Tensor:
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return torch.tensor([[a, -b, x], [b, a, y]], dtype=torch.float32)


def test_similarity_recovers_exact_motions() -> None:
    motions = torch.stack(
        [rotation(0, 1, 0, 0), rotation(0.3, 0.4, 9, -5), rotation(3.0, 2.5, -80, 40)]
    )
    points = transform(invert(motions), ARCFACE_TEMPLATE.expand(3, -1, -1))
    torch.testing.assert_close(similarity(points), motions, atol=1e-3, rtol=1e-4)


def test_similarity_is_the_least_squares_optimum() -> None:
    points = 60 + 300 * torch.rand(4, 5, 2)
    for p, matrix in zip(points.double().numpy(), similarity(points), strict=True):
        # a, b, x, y of [[a, -b, x], [b, a, y]], from the ten equations as they stand
        rows = [[x, -y, 1, 0] for x, y in p] + [[y, x, 0, 1] for x, y in p]
        right = ARCFACE_TEMPLATE.double().numpy().T.reshape(-1)
        a, b, x, y = np.linalg.lstsq(np.array(rows), right, rcond=None)[0]
        expected = torch.tensor([[a, -b, x], [b, a, y]]).float()
        torch.testing.assert_close(matrix, expected, atol=2e-3, rtol=1e-3)
        assert float(torch.linalg.det(matrix[:, :2])) > 0


def test_similarity_never_mirrors() -> None:
    mirrored = ARCFACE_TEMPLATE * torch.tensor([-1.0, 1.0])
    assert float(torch.linalg.det(similarity(mirrored[None])[0, :, :2])) > 0


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_similarity_refuses_landmarks_without_extent(value) -> None:
    with pytest.raises(InputError, match="landmarks"):
        similarity(torch.full((1, 5, 2), value))


def opencv(image: Tensor, matrix: Tensor) -> Tensor:
    """cv2.warpAffine on the float picture."""
    picture = image[0].permute(1, 2, 0).numpy().copy()
    face = cv2.warpAffine(picture, matrix.double().numpy(), (112, 112), flags=cv2.INTER_LINEAR)
    return torch.from_numpy(face).permute(2, 0, 1)[None]


MOTIONS = [
    rotation(0, 1, 0, 0),
    rotation(0.2, 0.3, 20.3, 5.7),
    rotation(-0.4, 0.8, -30, 40),
    rotation(1.2, 2.5, 30.5, -90.1),
]


@pytest.mark.parametrize("motion", MOTIONS)
def test_warp_equals_opencv_on_random_pictures(motion) -> None:
    image = torch.rand(1, 3, 96, 120)
    if int(cv2.__version__.split(".")[0]) < 5:  # it rounds positions to 1/32 pixel
        image = torch.nn.functional.avg_pool2d(image, 9, 1, 4)
    torch.testing.assert_close(
        warp(image, motion[None]), opencv(image, motion), atol=1 / 255, rtol=0
    )


def test_warp_equals_opencv_on_photos(portraits) -> None:
    for portrait in portraits[0]:
        matrix = similarity(portrait.landmarks)
        face = warp(portrait.image, matrix)
        expected = opencv(portrait.image, matrix[0])
        torch.testing.assert_close(face, expected, atol=1 / 255, rtol=0)


def test_warp_takes_each_image_by_its_own_matrix() -> None:
    images = torch.rand(2, 3, 64, 80)
    together = warp(images, torch.stack(MOTIONS[:2]))
    alone = [warp(i[None], m[None]) for i, m in zip(images, MOTIONS, strict=False)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_warp_puts_the_landmarks_on_the_template() -> None:
    motion = rotation(0.4, 0.5, 20, -15)
    points = transform(invert(motion[None]), ARCFACE_TEMPLATE[None])
    image = torch.zeros(1, 1, 260, 260)
    y, x = torch.meshgrid(torch.arange(260.0), torch.arange(260.0), indexing="ij")
    for point in points[0]:
        image += torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 18)
    for antialias in (False, True):
        face = warp(image, similarity(points), antialias=antialias)[0, 0]
        for u, v in ARCFACE_TEMPLATE.round().int().tolist():
            around = face[v - 3 : v + 4, u - 3 : u + 4]
            row, column = divmod(int(around.argmax()), 7)
            assert abs(row - 3) <= 1 and abs(column - 3) <= 1


def test_warp_gradient_is_exact() -> None:
    image = torch.rand(1, 1, 20, 24, requires_grad=True)
    motion = rotation(0.3, 5.0, -10, 4)[None]
    weight, step = torch.rand(1, 1, 112, 112), torch.randn(1, 1, 20, 24)
    (gradient,) = torch.autograd.grad((warp(image, motion) * weight).sum(), image)
    # The warp is linear in the image, so one difference of any size is its derivative.
    difference = (warp(image + step, motion) - warp(image, motion)).mul(weight).sum()
    torch.testing.assert_close(difference, (gradient * step).sum(), rtol=1e-3, atol=1e-2)


def test_antialias_sees_every_pixel_of_a_large_face() -> None:
    motion = rotation(0, 0.25, 0, 0)[None]
    seen = []
    for antialias in (False, True):
        image = torch.rand(1, 1, 448, 448, requires_grad=True)
        warp(image, motion, antialias=antialias).sum().backward()
        seen.append(float((image.grad[..., 4:-4, 4:-4] != 0).float().mean()))
    assert seen[0] < 0.3 and seen[1] == 1
    # On a ramp, which has nothing to alias, both agree.
    ramp = torch.arange(448.0).expand(1, 1, 448, 448) / 448
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(warp(ramp, motion, antialias=True)[inner], warp(ramp, motion)[inner])


def oval(box: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    x, y, w, h = box
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    dx, dy = (columns + 0.5 - x - w / 2) / (w / 2), (rows + 0.5 - y - h / 2) / (h / 2)
    return (dx**2 + dy**2 <= 1).float()[None]


def test_landmarks_from_mask_follow_the_mask() -> None:
    small = landmarks_from_mask(oval((20, 30, 60, 80), (200, 200)))
    moved = landmarks_from_mask(oval((50, 40, 60, 80), (200, 200)))
    large = landmarks_from_mask(oval((20, 30, 120, 160), (200, 200)))
    torch.testing.assert_close(moved - small, torch.tensor([30.0, 10.0]).expand(5, 2))
    torch.testing.assert_close(large[1] - large[0], 2 * (small[1] - small[0]), atol=0.2, rtol=0)
    eyes, mouth = small[:2], small[3:]
    assert eyes[0, 0] < eyes[1, 0] and torch.all(mouth[:, 1] > eyes[:, 1].max())
    assert torch.all((small > torch.tensor([20, 30])) & (small < torch.tensor([80, 110])))


def test_landmarks_from_mask_on_photos(portraits) -> None:
    faces = [p for group in portraits for p in group]
    errors = []
    for face in faces:
        guess = landmarks_from_mask(oval(face.box, face.image.shape[-2:]))
        distance = (guess - face.landmarks[0]).norm(dim=-1).mean()
        errors.append(float(distance) / face.box[2])
    assert np.mean(errors) < 0.1 and max(errors) < 0.25


def test_landmarks_from_an_empty_mask() -> None:
    with pytest.raises(InputError, match="empty"):
        landmarks_from_mask(torch.zeros(1, 8, 8))
