"""Colours by name, skin tones, and small colour arithmetic; RGB float32 in 0..1."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Array = NDArray[np.floating[Any]]  # float32 in practice

# name: hue, saturation, value
HSV: dict[str, Colour] = {
    "red": (0.995, 0.78, 0.80),
    "orange": (0.075, 0.80, 0.92),
    "yellow": (0.135, 0.72, 0.95),
    "green": (0.345, 0.58, 0.62),
    "teal": (0.485, 0.62, 0.66),
    "blue": (0.595, 0.66, 0.78),
    "purple": (0.755, 0.52, 0.66),
    "pink": (0.925, 0.46, 0.93),
    "brown": (0.065, 0.60, 0.46),
    "grey": (0.600, 0.06, 0.58),
    "black": (0.640, 0.22, 0.15),
    "white": (0.110, 0.05, 0.95),
}
SCENE_COLOURS = tuple(HSV)
HAIR_HSV: dict[str, Colour] = {
    "black": (0.640, 0.25, 0.14),
    "brown": (0.060, 0.62, 0.36),
    "blond": (0.120, 0.52, 0.88),
    "red": (0.030, 0.76, 0.66),
    "grey": (0.600, 0.07, 0.64),
    "white": (0.120, 0.05, 0.94),
    "blue": (0.600, 0.62, 0.76),
    "pink": (0.920, 0.48, 0.92),
    "green": (0.360, 0.52, 0.62),
    "purple": (0.760, 0.50, 0.60),
}
HAIR_COLOURS = tuple(HAIR_HSV)
IRIS_HSV: dict[str, Colour] = {
    "brown": (0.065, 0.68, 0.42),
    "amber": (0.100, 0.75, 0.74),
    "green": (0.330, 0.48, 0.60),
    "blue": (0.580, 0.58, 0.82),
    "grey": (0.580, 0.12, 0.62),
}
IRIS_COLOURS = tuple(IRIS_HSV)

# From light to deep; interpolated, so that every tone between two stops occurs.
_SKIN = np.array(
    [
        (0.98, 0.87, 0.79),
        (0.95, 0.78, 0.67),
        (0.87, 0.66, 0.50),
        (0.72, 0.49, 0.35),
        (0.52, 0.33, 0.23),
        (0.34, 0.21, 0.16),
    ]
)


def jittered(base: Colour, rng: np.random.Generator, amount: float = 1.0) -> Colour:
    """An RGB colour near an HSV one: the name still fits, no two are the same."""
    h, s, v = base
    dh, ds, dv = (rng.uniform(-1, 1, 3) * (0.018, 0.12, 0.09) * amount).tolist()
    if s < 0.3:  # greys stay grey
        ds *= 0.3
    r, g, b = colorsys.hsv_to_rgb((h + dh) % 1.0, _unit(s + ds), _unit(v + dv))
    return (r, g, b)


def skin(tone: float, undertone: float) -> Colour:
    """Skin colour for a tone 0 (light) .. 1 (deep) and an undertone -1 (cool) .. 1 (warm)."""
    at = tone * (len(_SKIN) - 1)
    stops = np.arange(len(_SKIN))
    r, g, b = (float(np.interp(at, stops, _SKIN[:, c])) for c in range(3))
    return (_unit(r), _unit(g * (1 + 0.03 * undertone)), _unit(b * (1 - 0.10 * undertone)))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` (0..1) of the way from a to b."""
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def scaled(a: Colour, factor: float) -> Colour:
    """The colour made darker (factor < 1) or lighter (factor > 1), clipped to 0..1."""
    return (_unit(a[0] * factor), _unit(a[1] * factor), _unit(a[2] * factor))


def planes(colour: Colour) -> Array:
    """The colour as a (3, 1, 1) array."""
    return np.array(colour, np.float32).reshape(3, 1, 1)


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
