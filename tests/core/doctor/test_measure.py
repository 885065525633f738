"""Angles, sharpness, light and cover against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from magicapture.doctor import measure
from magicapture.faces.align import ARCFACE_TEMPLATE, FFHQ_TEMPLATE
from magicapture.faces.protocols import Part


def seen(yaw: float = 0, roll: float = 0) -> torch.Tensor:
    """The average face, turned, as a camera far away sees it."""
    a, b = math.radians(yaw), math.radians(roll)
    # Ahead is towards the camera; turned to the right, it points to the picture's right.
    turn = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    spin = torch.tensor([[math.cos(b), -math.sin(b)], [math.sin(b), math.cos(b)]])
    return (measure._average_face() @ turn.T)[:, :2] @ spin.T + 100


@pytest.mark.parametrize("yaw", [-50, 0, 30])
@pytest.mark.parametrize("roll", [-25, 0, 40])
def test_angles_of_a_turned_head(yaw, roll) -> None:
    found = measure.angles(3.7 * seen(yaw, roll))
    assert found.yaw == pytest.approx(yaw, abs=0.5)
    assert found.roll == pytest.approx(roll, abs=0.5)


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    image = torch.rand(3, 256, 256)
    image = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    points = ARCFACE_TEMPLATE + 60
    values = [measure.sharpness(image, points, 256)]
    for size in (5, 11):
        blurred = torch.nn.functional.avg_pool2d(image, size, 1, size // 2)
        values.append(measure.sharpness(blurred, points, 256))
    assert values[0] > values[1] > values[2]
    pale = 0.5 + 0.1 * (image - 0.5)
    assert measure.sharpness(pale, points, 256) == pytest.approx(values[0], abs=0.01)


def test_light_and_cover() -> None:
    face = torch.full((112, 112), 0.2)
    face[:, 56:] = 0.6
    brightness, side = measure.light(face)
    assert brightness == pytest.approx(0.4, abs=0.02) and side == pytest.approx(0.5, abs=0.02)
    parts = torch.full((512, 512), int(Part.SKIN))
    assert measure.covered(parts, FFHQ_TEMPLATE) == 0
    parts[:, :256] = Part.HAIR
    assert measure.covered(parts, FFHQ_TEMPLATE) == pytest.approx(0.5, abs=0.02)
    parts[:, :256] = Part.GLASSES
    assert measure.covered(parts, FFHQ_TEMPLATE) == 0


def test_thumbnails_tell_pictures_apart() -> None:
    one, other = torch.rand(3, 90, 120), torch.rand(3, 90, 120)
    again = torch.nn.functional.interpolate(one[None], (270, 360), mode="bicubic")[0] * 0.8
    first = measure.thumbnail(one)
    assert float(first @ measure.thumbnail(again)) > 0.9
    assert abs(float(first @ measure.thumbnail(other))) < 0.5
