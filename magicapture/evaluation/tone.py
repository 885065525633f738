"""Skin tone in a picture: the individual typology angle (ITA; Chardon, Cretois & Hourseau 1991).

atan((L* - 50) / b*) of the skin's colour in CIE L*a*b* (1976, D65), in degrees; its bands are those
of Del Bino & Bernerd (2013). It was made for instruments, not for photos: light, white balance and
style move it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..faces.align import HEAD_SIZE
from ..faces.analyzer import head
from ..faces.masks import FaceMask
from ..faces.protocols import Face, Part

BANDS = (
    (55.0, "very light"),
    (41.0, "light"),
    (28.0, "intermediate"),
    (10.0, "tan"),
    (-30.0, "brown"),
    (-90.0, "dark"),
)
"""Each band's lower end in degrees, and its name."""

_COLOURLESS = 3.0  # b* below it is no skin's colour: a picture in black and white, or in blue
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE = (0.9505, 1.0, 1.089)  # D65
_CHEEKS = ((192, 315), (320, 315))  # x, y in the aligned head: below the eyes, beside the nose
_REACH = 20  # pixels around each


def band(angle: float) -> str:
    """The name of the band that an angle lies in."""
    return next(name for low, name in BANDS if angle > low or low == -90.0)


def skin_tone(image: Tensor, face: Face, mask: FaceMask) -> float | None:
    """The angle of a face's skin in an image (3,H,W), in degrees; None where it has no colour.

    Of what the parser calls skin; without one, of two patches on the cheeks.
    """
    crop, _ = head(image, face)
    where = _cheeks() if mask.parts is None else mask.parts == Part.SKIN
    pixels = crop[0][:, where]
    if pixels.shape[1] < 16:
        return None
    light, _, yellow = lab(pixels.median(dim=1).values)
    if yellow < _COLOURLESS:
        return None
    return math.degrees(math.atan2(light - 50, yellow))


def _cheeks() -> Tensor:
    """Where the cheeks are in an aligned head: (512,512) bool."""
    where = torch.zeros(HEAD_SIZE, HEAD_SIZE, dtype=torch.bool)
    for x, y in _CHEEKS:
        where[y - _REACH : y + _REACH, x - _REACH : x + _REACH] = True
    return where


def lab(colour: Tensor) -> tuple[float, float, float]:
    """L*, a*, b* of an sRGB colour (3,) in 0..1 (IEC 61966-2-1; CIE 1976)."""
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    ratio = (torch.tensor(_TO_XYZ) @ linear.float()) / torch.tensor(_WHITE)
    small = (6 / 29) ** 3
    x, y, z = torch.where(
        ratio > small, ratio.clamp_min(1e-9) ** (1 / 3), ratio * (29 / 6) ** 2 / 3 + 4 / 29
    ).tolist()
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
