"""Signed distances of simple shapes (negative inside, head units) and their pixel coverage.

Shapes are functions of coordinate arrays, so a picture of any size has edges that are exactly one
pixel soft, and no supersampling is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .colours import Array

_TINY = np.float32(1e-6)


def coverage(distance: Array, pixel: float) -> Array:
    """How much of each pixel a shape covers, 0..1, for pixels `pixel` units wide."""
    return np.clip(0.5 - distance * (1.0 / pixel), 0.0, 1.0)


def soft(distance: Array, width: float) -> Array:
    """A smooth fall from 1 to 0 over `width` units on both sides of the edge."""
    t = np.clip(0.5 - distance * (0.5 / width), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def ellipse(u: Array, v: Array, rx: float, ry: float) -> Array:
    """An ellipse around the origin."""
    x, y = u * (1 / rx), v * (1 / ry)
    k = np.sqrt(x * x + y * y) + _TINY
    slope = np.sqrt((x / rx) ** 2 + (y / ry) ** 2) + _TINY
    return k * (k - 1.0) / slope


def circle(u: Array, v: Array, radius: float) -> Array:
    """A circle around the origin."""
    return np.sqrt(u * u + v * v) - radius


def box(u: Array, v: Array, rx: float, ry: float, corner: float = 0.0) -> Array:
    """A rectangle around the origin with rounded corners."""
    x = np.abs(u) - (rx - corner)
    y = np.abs(v) - (ry - corner)
    outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
    return outside + np.minimum(np.maximum(x, y), 0) - corner


def segment(u: Array, v: Array, a: tuple[float, float], b: tuple[float, float]) -> Array:
    """The (unsigned) distance to a line from a to b."""
    du, dv = b[0] - a[0], b[1] - a[1]
    t = np.clip(((u - a[0]) * du + (v - a[1]) * dv) / (du * du + dv * dv), 0.0, 1.0)
    return np.sqrt((u - a[0] - t * du) ** 2 + (v - a[1] - t * dv) ** 2)


def arch(u: Array, v: Array, half: float, height: float) -> Array:
    """Below the parabola that rises by `height` between -half and half (v points down)."""
    x = u * (1 / half)
    slope = 2 * height / half * x
    return -(v + height * (1.0 - x * x)) / np.sqrt(1.0 + slope * slope)


def union(first: Array, second: Array, blend: float = 0.0) -> Array:
    """Both shapes, their meeting rounded over `blend` units."""
    if blend <= 0:
        return np.minimum(first, second)
    h = np.maximum(blend - np.abs(first - second), 0.0) / blend
    return np.minimum(first, second) - h * h * (blend * 0.25)


def common(*shapes: Array) -> Array:
    """What all shapes share."""
    return np.maximum.reduce(shapes)


def without(shape: Array, hole: Array) -> Array:
    """The first shape with the second cut out."""
    return np.maximum(shape, -hole)


def discs(u: Array, v: Array, places: Iterable[tuple[float, float, float]], blend: float) -> Array:
    """The rounded union of circles (u, v, radius)."""
    result: Array | None = None
    for cu, cv, radius in places:
        disc = circle(u - cu, v - cv, radius)
        result = disc if result is None else union(result, disc, blend)
    assert result is not None
    return result
