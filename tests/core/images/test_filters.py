"""Blur, brightness, contrast and sizes against torchvision, NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from magicapture.images import (
    LUMA,
    adjust_brightness,
    adjust_contrast,
    from_pil,
    gaussian_blur,
    luma,
    resize,
    to_pil,
)


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision.transforms.v2").functional


def photo(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((4, 90, 90), (64, 64)),  # photo and mask together, made smaller
        ((3, 40, 40), (64, 64)),  # larger
        ((3, 130, 97), (31, 50)),
        ((3, 33, 33), (33, 33)),
        ((2, 3, 50, 40), (64, 48)),
    ],
)
def test_resize_is_torchvisions_to_the_bit(torchvision, shape, size):
    image = photo(*shape)
    mode = torchvision.InterpolationMode.BICUBIC
    expected = torchvision.resize(image, list(size), mode, antialias=True).clamp(0, 1)
    assert torch.equal(resize(image, size), expected)


def test_resize_of_a_cut_out_part_is_torchvisions_to_the_bit(torchvision):
    cut = photo(4, 120, 150)[:, 11:91, 37:117]  # not contiguous, as a crop is
    mode = torchvision.InterpolationMode.BICUBIC
    expected = torchvision.resize(cut, [64, 64], mode, antialias=True).clamp(0, 1)
    assert torch.equal(resize(cut, (64, 64)), expected)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.0, 1.1, 3.0])
def test_brightness_and_contrast_are_torchvisions_to_the_bit(torchvision, factor):
    for image in (photo(3, 31, 47), photo(2, 3, 8, 8), photo(4, 31, 47)[:3]):
        before = image.clone()
        assert torch.equal(
            adjust_brightness(image, factor), torchvision.adjust_brightness(image, factor)
        )
        assert torch.equal(
            adjust_contrast(image, factor), torchvision.adjust_contrast(image, factor)
        )
        assert torch.equal(image, before)


def test_luma_is_rec_601():
    assert sum(LUMA) == pytest.approx(1)
    image = photo(2, 3, 5, 7)
    expected = np.tensordot(LUMA, image.double().numpy(), (0, 1))
    np.testing.assert_allclose(luma(image)[:, 0].numpy(), expected, atol=1e-6)
    assert luma(image[0]).shape == (1, 5, 7)
    assert torch.equal(luma(image)[1], luma(image[1]))


@pytest.mark.parametrize(
    ("edge", "pad"), [("replicate", "edge"), ("reflect", "reflect"), ("constant", "constant")]
)
@pytest.mark.parametrize(("sigma", "reach"), [(0.5, 3), (1.7, 3), (1.7, 4), (5.0, 3)])
def test_the_blur_is_a_gaussians_sum(edge, pad, sigma, reach):
    image = photo(2, 3, 40, 33)
    radius = round(reach * sigma)
    wide = np.pad(image.double().numpy(), [(0, 0), (0, 0), (radius, radius), (radius, radius)], pad)
    expected, total = 0, 0
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            weight = math.exp(-(y * y + x * x) / (2 * sigma * sigma))
            total += weight
            part = wide[..., radius + y : radius + y + 40, radius + x : radius + x + 33]
            expected = expected + weight * part
    blurred = gaussian_blur(image, sigma, edge=edge, reach=reach)
    np.testing.assert_allclose(blurred.numpy(), expected / total, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.5, 2.56, 7.68])
def test_the_blur_is_torchvisions_to_float_precision(torchvision, sigma):
    mask = (photo(1, 64, 64) > 0.5).float()
    expected = torchvision.gaussian_blur(mask, [2 * round(3 * sigma) + 1] * 2, [sigma, sigma])
    blurred = gaussian_blur(mask[None], sigma, edge="reflect")[0]
    torch.testing.assert_close(blurred, expected, atol=2e-6, rtol=0)


def test_the_blur_of_tiny_planes_and_of_nothing():
    image = photo(1, 1, 3, 2)
    assert torch.equal(gaussian_blur(image, 0), image)
    assert gaussian_blur(image, 50, edge="reflect").shape == image.shape


def test_a_wide_blur_costs_two_lines_and_not_a_square():
    """Counted in multiplications: the square's would be a hundred times the pixels' lines."""
    from torch.utils.flop_counter import FlopCounterMode

    sigma, mask = 15.36, torch.zeros(1, 1, 256, 256)
    with FlopCounterMode(display=False) as counter:
        gaussian_blur(mask, sigma)
    width = 2 * round(3 * sigma) + 1
    assert counter.get_total_flops() < 2 * 256 * (256 + width) * width * 2.5


def test_pillow_and_back():
    values = torch.arange(256).view(1, 16, 16).expand(3, -1, -1) / 255
    picture = to_pil(values)
    assert picture.mode == "RGB" and picture.size == (16, 16)
    assert torch.equal(from_pil(picture), values)
    assert torch.equal(from_pil(to_pil(values[:1])), values[:1])
    assert to_pil(torch.full((3, 2, 2), 1.7)).getpixel((0, 0)) == (255, 255, 255)
    assert to_pil(torch.full((3, 2, 2), -0.1)).getpixel((0, 0)) == (0, 0, 0)
    assert to_pil(torch.full((3, 2, 2), 0.5)).getpixel((0, 0)) == (128, 128, 128)  # rounded to even
    wide = to_pil(photo(3, 4, 9).requires_grad_())
    assert wide.size == (9, 4)
    assert from_pil(Image.new("RGBA", (5, 3), "red"))[:, 0, 0].tolist() == [1, 0, 0, 1]
