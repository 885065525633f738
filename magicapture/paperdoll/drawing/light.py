"""Hard light: a figure lit from one side alone, a face half in the shadow of something else."""

from __future__ import annotations

import numpy as np

from . import shapes
from .canvas import Canvas, Label
from .colours import Array, Colour, planes
from .head import Face

_BRIGHT: Colour = (1.26, 1.22, 1.16)  # past what the picture can hold, as in a photo
_DARK: Colour = (0.27, 0.29, 0.34)
_SHADED: Colour = (0.40, 0.42, 0.48)


def hard(canvas: Canvas, face: Face) -> None:
    """Lights the finished figure, not the background, as the pose asks: `side_light`, `shadow`."""
    pose = face.pose
    if not (pose.side_light or pose.shadow):
        return
    figure = _blurred((canvas.labels != Label.BACKGROUND).astype(np.float32))
    if pose.side_light:
        _multiply(canvas, _from_side(face), figure * np.float32(abs(pose.side_light)))
    if pose.shadow:
        edge = shapes.soft(_beyond(face), 0.05)
        _multiply(canvas, planes(_SHADED), figure * edge * np.float32(abs(pose.shadow)))


def _from_side(face: Face) -> Array:
    """What the light multiplies: (3, H, W), with the nose's shadow on the cheek behind it."""
    side = np.sign(face.pose.side_light)
    towards = (face.frame.u - np.float32(face.across(0.5))) * (side / face.identity.face_width)
    lit = 1 - shapes.soft(towards + np.float32(0.05), 0.5)
    tip, base = face.nose_tip
    middle = tip - side * 0.6 * face.identity.nose_width
    u, v = face.frame.u - np.float32(middle), face.frame.v - np.float32(0.66 * base)
    nose = shapes.ellipse(u, v, 1.1 * face.identity.nose_width, 0.55 * base)
    lit = lit * (1 - 0.8 * shapes.soft(nose, 0.07))
    return planes(_DARK) + lit * (planes(_BRIGHT) - planes(_DARK))


def _beyond(face: Face) -> Array:
    """Signed distance, negative in the shadow, to a slanting edge along the nose: (H, W)."""
    side = np.sign(face.pose.shadow)
    across = face.frame.u - np.float32(face.across(1.0))
    return -side * (across - np.float32(0.22 * side) * (face.frame.v - 0.3)) - np.float32(0.02)


def _multiply(canvas: Canvas, gain: Array, amount: Array) -> None:
    canvas.image *= 1 + amount * (gain - 1)
    np.clip(canvas.image, 0, 1, out=canvas.image)


def _blurred(values: Array) -> Array:
    """The mean over 3 x 3 cells: an edge as soft as those that were painted."""
    size = values.shape[0]
    padded = np.pad(values, 1, mode="edge")
    total = sum(padded[y : y + size, x : x + size] for y in range(3) for x in range(3))
    return np.asarray(total, np.float32) / np.float32(9)
