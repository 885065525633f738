"""Rendering: identity x style x pose and light to a picture that knows what is where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import features, hair, head, light, marks, media, scene
from .canvas import Canvas, Frame
from .colours import Array
from .traits import Identity, Pose, Style

SIZE = 128


@dataclass(frozen=True)
class Doll:
    """A rendered portrait and its ground truth.

    image: (3, H, W) float32 RGB, 0..1.
    mask: (1, H, W) float32, how much of a pixel is face: skin, ears, features, glasses, beard.
    labels: (H, W) uint8, the foremost part (see `Label`).
    landmarks: (5, 2) float32, x and y in pixels (whole numbers are pixel centres): left eye, right
        eye, tip of the nose, left and right corner of the mouth; left and right of the picture.
    """

    image: Array
    mask: Array
    labels: NDArray[np.uint8]
    landmarks: Array


def render(identity: Identity, style: Style, pose: Pose | None = None, size: int = SIZE) -> Doll:
    """Draws a doll, `size` pixels square."""
    pose = pose or Pose()
    canvas = Canvas(size)
    upright = Frame.of(size, pose, tilted=False)
    tilted = Frame.of(size, pose, tilted=True)
    face = head.Face(identity, pose, tilted)

    scene.background(canvas, style)
    hair.behind(canvas, tilted, style, pose)
    scene.neck(canvas, upright, face.skin, face.shadow)
    scene.clothes(canvas, upright, style, pose, face.skin)
    head.ears(canvas, face)
    head.skull(canvas, face)
    marks.marks(canvas, face)
    marks.beard(canvas, face)
    features.eyes(canvas, face)
    features.mouth(canvas, face)
    head.nose(canvas, face)
    features.brows(canvas, face)
    features.glasses(canvas, face)
    hair.before(canvas, tilted, style, pose)
    light.hard(canvas, face)

    warmth = np.array((1 + 0.035 * pose.warmth, 1, 1 - 0.05 * pose.warmth), np.float32)
    canvas.image *= np.float32(pose.exposure) * warmth.reshape(3, 1, 1)
    image = media.apply(np.clip(canvas.image, 0.0, 1.0), style.medium)
    return Doll(image, canvas.mask[None], canvas.labels, _landmarks(face))


def _landmarks(face: head.Face) -> Array:
    eyes = [features.eye_centre(face, side) for side in (-1.0, 1.0)]
    u, v = face.mouth_at
    half = face.identity.mouth_width * (1 + 0.16 * max(face.pose.smile, 0.0))
    corner = v - 0.16 * face.pose.smile * 0.55
    points = [*eyes, face.nose_tip, (u - half, corner), (u + half, corner)]
    return np.array([face.frame.to_pixels(*point) for point in points], np.float32)
