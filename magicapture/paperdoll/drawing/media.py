"""Media: a finished picture seen as a photo, a sketch, a poster and so on."""

from __future__ import annotations

import numpy as np

from ...images import LUMA
from .colours import Array

_LUMA = np.array(LUMA, np.float32)


def apply(image: Array, medium: str) -> Array:
    """The picture (3, H, W) 0..1 in a medium; the same size and range."""
    if medium == "photo":
        return image
    if medium == "sepia":
        ramp = _ramp(((0.13, 0.08, 0.05), (0.60, 0.44, 0.30), (0.98, 0.91, 0.77)))
        return _toned(_luma(image), ramp)
    if medium == "noir":
        luma = _luma(image)
        luma = np.clip((luma - 0.5) * 1.35 + 0.47, 0, 1)
        return _toned(luma, _ramp(((0.03, 0.03, 0.05), (0.47, 0.48, 0.51), (0.98, 0.98, 0.97))))
    if medium == "pastel":
        paper = np.array((0.99, 0.95, 0.92), np.float32).reshape(3, 1, 1)
        grey = _luma(image)[None]
        return 0.56 * (image * 0.86 + grey * 0.14) + 0.44 * paper
    if medium == "poster":
        return _poster(image)
    if medium == "sketch":
        return _sketch(image)
    raise ValueError(f"unknown medium {medium!r}")


def _luma(image: Array) -> Array:
    return np.tensordot(_LUMA, image, 1)


def _ramp(stops: tuple[tuple[float, float, float], ...]) -> Array:
    table = np.array(stops, np.float32)
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(stops)), table[:, c]) for c in range(3)]).astype(
        np.float32
    )


def _toned(luma: Array, ramp: Array) -> Array:
    index = np.clip(luma * 255 + 0.5, 0, 255).astype(np.uint8)
    return ramp[:, index]


def _edges(luma: Array) -> Array:
    """Strength of the outlines, 0..1."""
    padded = np.pad(luma, 1, mode="edge")
    du = padded[1:-1, 2:] - padded[1:-1, :-2]
    dv = padded[2:, 1:-1] - padded[:-2, 1:-1]
    return np.clip(np.sqrt(du * du + dv * dv) * 2.2 - 0.10, 0, 1)


def _poster(image: Array) -> Array:
    """Few brightness levels, full colours, black outlines; hues stay, so that skin stays skin."""
    levels = np.float32(5.0)
    luma = _luma(image)
    low = np.floor(luma * levels)
    step = np.clip((luma * levels - low - 0.5) * 5 + 0.5, 0, 1)
    flat = (low + step + 0.25) / (levels + 0.25)
    vivid = flat + 1.4 * (image - luma) * np.minimum(flat / (luma + np.float32(0.05)), 1.5)
    return np.clip(vivid, 0, 1) * (1.0 - 0.8 * _edges(luma))


def _sketch(image: Array) -> Array:
    luma = _luma(image)
    size = luma.shape[0]
    axis = np.arange(size, dtype=np.float32) * np.float32(128 / size)
    hatch = 0.5 + 0.5 * np.sin((axis[None, :] + axis[:, None]) * np.float32(1.15))
    dark = np.clip(0.66 - luma, 0, 1)
    tone = 0.98 - 0.75 * dark - 0.4 * dark * hatch
    tone *= 1.0 - 0.85 * _edges(luma)
    return _toned(tone, _ramp(((0.12, 0.12, 0.18), (0.98, 0.96, 0.92))))
