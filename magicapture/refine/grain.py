"""Grain and colour of a retouched part matched to its picture, so that the paste does not show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Checked, setting
from ..errors import InputError
from ..images import LUMA, gaussian_blur

LEVELS = 3
"""Octaves of grain: details of about 1, 2 and 4 pixels."""

_BLOCK = 16  # side in pixels of the blocks that grain is measured in
_FLATTEST = 0.25  # the quantile of the blocks' deviations that counts: texture is no grain
_FEWEST = 4  # blocks to tell grain from

# Y'CbCr of BT.601 in full range: grain and colour differ between brightness and colour.
_TO_YCC = torch.tensor([LUMA, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@dataclass(frozen=True)
class MatchSettings(Checked):
    """How much of colour and grain is matched."""

    colour: float = setting(
        1.0,
        "How much of the original's broad colour and shading comes back inside the mask.",
        low=0,
        high=1,
    )
    grain: float = setting(
        1.0,
        "How much of the grain that the part lacks against its surroundings is added.",
        low=0,
        high=1,
    )
    seed: int = setting(0, "Another seed draws other grain of the same strength.", low=0)


@torch.no_grad()
def match_picture(
    image: Tensor, original: Tensor, mask: Tensor, settings: MatchSettings | None = None
) -> Tensor:
    """An image (3,H,W) whose masked part has the original's colour and its surroundings' grain.

    original: (3,H,W), the picture before it was retouched. mask: (1,H,W), where it was; outside
    of it the image comes back bit-equal. Raises InputError for sizes that differ.
    """
    settings = settings or MatchSettings()
    if image.shape != original.shape or mask.shape != image[:1].shape:
        raise InputError(
            f"The picture is {tuple(image.shape)}, its original {tuple(original.shape)} and the "
            f"mask {tuple(mask.shape)}; expected one height and width. Take the mask that "
            "came with the restored picture."
        )
    result = image.clone()
    if bool((mask > 0).any()):
        place = (slice(None), *_surroundings(mask))
        result[place] = _matched(image[place], original[place], mask[place], settings)
    return result


def _surroundings(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the masked part's box, grown by its own side in each direction."""
    spans = []
    for axis, length in zip((2, 1), mask.shape[1:], strict=True):
        found = (mask > 0).any(dim=axis)[0].nonzero()
        first, last = int(found.min()), int(found.max()) + 1
        margin = last - first
        spans.append(slice(max(first - margin, 0), min(last + margin, length)))
    return spans[0], spans[1]


def _matched(image: Tensor, original: Tensor, mask: Tensor, settings: MatchSettings) -> Tensor:
    weight = mask.clamp(0, 1)
    matched = image + settings.colour * weight * colour_shift(image, original, mask)
    if settings.grain:
        matched = matched + settings.grain * weight * missing_grain(matched, mask, settings.seed)
    return torch.where(mask > 0, matched.clamp(0, 1), image)


def colour_shift(image: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """What brings a part's broad colours back to the original's: (3,H,W).

    The difference of the two, blurred within the mask m: G(m (original - image)) / G(m), with a
    Gaussian G whose deviation is an eighth of the side of a square of the mask's area. Shading
    and skin tone come back; details, which are finer, stay.
    """
    width = max(1.0, float(mask.sum().sqrt()) / 8)
    weighted = _smoothed(torch.cat([mask * (original - image), mask]), width)
    return weighted[:3] / weighted[3:].clamp_min(1e-6)


def _smoothed(planes: Tensor, deviation: float) -> Tensor:
    """Planes (C,H,W), 0 beyond their edge, under a Gaussian; a wide one runs at a smaller size."""
    shrink = max(1, int(deviation / 4))
    height, width = planes.shape[-2:]
    pad = [0, -width % shrink, 0, -height % shrink]
    small = F.avg_pool2d(F.pad(planes[None], pad), shrink)
    small = gaussian_blur(small, deviation / shrink, edge="constant", reach=4)
    full = F.interpolate(small, scale_factor=shrink, mode="bilinear", align_corners=False)
    return full[0, :, :height, :width]


def missing_grain(image: Tensor, mask: Tensor, seed: int = 0) -> Tensor:
    """The grain that the masked part lacks against what is around it: (3,H,W), to be added.

    Per channel of Y'CbCr and per octave, Gaussian noise of variance max(0, outside - inside),
    where both are read off the flattest blocks. Zero where either has too few blocks to tell.
    """
    to_ycc = _TO_YCC.to(image)
    planes = torch.einsum("ij,jhw->ihw", to_ycc, image)
    outside, inside = mask[0] == 0, mask[0] > 0.5
    details = bands(planes)
    there, here = (_deviations(details, region & _unclipped(image)) for region in (outside, inside))
    if there is None or here is None:
        return torch.zeros_like(image)
    lacking = (there.square() - here.square()).clamp_min(0).sqrt()
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same grain on every device
    noise = torch.randn(image.shape, generator=generator).to(image)
    grain = bands(noise) / _white_deviations().to(image).view(LEVELS, 1, 1, 1)
    return torch.einsum("ij,ljhw,lj->ihw", torch.linalg.inv(to_ycc), grain, lacking)


def _unclipped(image: Tensor) -> Tensor:
    """Where no channel is black or white, which has no grain left: (H,W)."""
    return ((image > 0.01) & (image < 0.99)).all(dim=0)


def bands(planes: Tensor) -> Tensor:
    """The details of planes (C,H,W) by octave, finest first: (LEVELS,C,H,W).

    Differences of successive smoothings by the B3 spline with holes (the a trous transform).
    """
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]).to(planes) / 16
    line = taps.view(1, 1, 1, -1).expand(len(planes), -1, -1, -1)
    smooth, found = planes[None], []
    for level in range(LEVELS):
        gap = 2**level
        wide = F.pad(smooth, [2 * gap] * 4, mode="replicate")
        wide = F.conv2d(wide, line, dilation=(1, gap), groups=len(planes))
        wide = F.conv2d(wide, line.mT, dilation=(gap, 1), groups=len(planes))
        found.append((smooth - wide)[0])
        smooth = wide
    return torch.stack(found)


def _white_deviations() -> Tensor:
    """The deviation of each band of white noise of deviation 1: (LEVELS,)."""
    impulse = torch.zeros(1, 65, 65)
    impulse[0, 32, 32] = 1
    return bands(impulse).square().sum(dim=(1, 2, 3)).sqrt()


def _deviations(details: Tensor, region: Tensor) -> Tensor | None:
    """The deviation (LEVELS,C) of each band in the flattest whole blocks of a region (H,W)."""
    whole = F.avg_pool2d(region.float()[None, None], _BLOCK)[0, 0] == 1
    if int(whole.sum()) < _FEWEST:
        return None
    power = F.avg_pool2d(details.square(), _BLOCK)[..., whole]
    return power.sqrt().quantile(_FLATTEST, dim=-1)
