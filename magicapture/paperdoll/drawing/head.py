"""The head: its outline, ears, nose and cheeks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import shapes
from .canvas import Canvas, Frame, Label, Window
from .colours import Array, Colour, mix, planes, scaled, skin
from .traits import Identity, Pose

TOP = -1.2  # the crown; chins differ, crowns do not, so that hair fits every head
DEPTH_SHIFT = 0.15  # how far a full turn moves what lies one unit in front of the axis


@dataclass
class Face:
    """One face being drawn: where its parts are, and what they share."""

    identity: Identity
    pose: Pose
    frame: Frame
    skin: Colour = field(init=False)
    shadow: Colour = field(init=False)
    outline: Array = field(init=False)  # signed distance of the head's edge
    lambert: Array = field(init=False)  # light on a smooth head, about -1..1

    def __post_init__(self) -> None:
        self.skin = skin(self.identity.tone, self.identity.undertone)
        self.shadow = mix(scaled(self.skin, 0.52), (0.36, 0.10, 0.10), 0.22)
        self.outline, self.lambert = self._form()

    def across(self, depth: float) -> float:
        """How far the turn of the head moves a part at this depth, in head units."""
        return DEPTH_SHIFT * self.pose.turn * depth

    @property
    def nod(self) -> float:
        """How far the nod moves the features down."""
        return 0.045 * self.pose.nod

    @property
    def nose_tip(self) -> tuple[float, float]:
        """The tip of the nose."""
        return self.across(1.25), self.identity.nose_length + self.nod * 1.4

    @property
    def mouth_at(self) -> tuple[float, float]:
        """The middle of the mouth: under the nose, the chin's length deciding how far."""
        low = 0.45 * self.identity.nose_length + 0.55 * self.identity.chin - 0.14
        return self.across(0.98), min(low, self.identity.chin - 0.34) + self.nod

    def _form(self) -> tuple[Array, Array]:
        one = self.identity
        u = self.frame.u - np.float32(self.across(0.25))
        v = self.frame.v
        down = np.maximum(v, 0.0) * (1 / one.chin)
        narrow = 1.0 - one.taper * 0.8 * down * down * (1.25 - 0.5 * down)
        x = u * (1 / one.face_width) / np.maximum(narrow, 0.3)
        y = np.where(v > 0, down, v * (1 / -TOP))
        x2, y2 = x * x, y * y
        oval = np.sqrt(x2 + y2) + np.float32(1e-4)
        square = np.sqrt(np.sqrt(x2 * x2 + y2 * y2)) + np.float32(1e-4)
        share = np.float32(0.12) + np.float32(0.5 * one.jaw) * np.clip(down * 2, 0, 1)
        k = oval + share * (square - oval)
        distance = (k - 1.0) * np.float32(one.face_width) * (0.92 + 0.16 * y2 / (x2 + y2 + 0.01))
        k2 = np.minimum(k * k, 1.0)
        depth = np.sqrt(1.0 - k2 * np.float32(0.96))
        lx = self.pose.light_angle
        lambert = x * (0.62 * lx) - y * 0.34 + depth * 0.72
        return distance, lambert

    def cover(self, window: Window) -> Array:
        """How much of each pixel the bare head covers."""
        return shapes.coverage(self.outline[window], self.frame.pixel)

    def lit(self, colour: Colour, window: Window, strength: float = 1.0) -> Array:
        """A colour as the head's form shades it: (3, h, w)."""
        amount = 0.34 * self.pose.light_strength * strength
        light = 1.0 + amount * (self.lambert[window] - 0.62)
        reds = np.array((0.72, 1.05, 1.2), np.float32).reshape(3, 1, 1)  # shadows on skin are warm
        return np.clip(planes(colour) * (1.0 + reds * (light - 1.0)), 0.0, 1.0)


def ears(canvas: Canvas, face: Face) -> None:
    """Both ears, the one turned away nearer to the head."""
    size = face.identity.ear_size
    for side, label in ((-1.0, Label.LEFT_EAR), (1.0, Label.RIGHT_EAR)):
        u0 = side * (face.identity.face_width + 0.1 * size) - face.across(0.2)
        window = face.frame.window(u0 - size, -size * 1.5, u0 + size, size * 2.4)
        u, v = face.frame.at(window, u0, 0.42 * size)
        form = shapes.ellipse(u, v, size * 0.72, size * 1.2)
        canvas.paint(
            shapes.coverage(form, face.frame.pixel), face.lit(face.skin, window), label, window
        )
        fold = shapes.ellipse(u + side * size * 0.1, v, size * 0.38, size * 0.75)
        canvas.tint(0.45 * shapes.soft(fold, 0.07), face.shadow, window)


def skull(canvas: Canvas, face: Face) -> None:
    """The head itself, with cheeks, the sockets of the eyes and a shaded rim."""
    window = face.frame.window(-1.2, TOP - 0.05, 1.2, face.identity.chin + 0.1)
    cover = face.cover(window)
    canvas.paint(cover, face.lit(face.skin, window), Label.SKIN, window)
    rim = shapes.soft(-face.outline[window] - 0.05, 0.13) * cover
    canvas.tint(0.26 * rim, face.shadow, window)
    glow = mix(face.skin, (0.93, 0.30, 0.30), 0.65)
    for side in (-1.0, 1.0):
        u, v = face.frame.at(window, side * 0.56 + face.across(0.8), 0.42 + face.nod)
        cheek = np.exp((u * u + v * v) * np.float32(-1 / 0.05)) * cover
        canvas.tint((0.08 + 0.5 * face.identity.blush) * cheek, glow, window)
        u, v = face.frame.at(
            window, side * face.identity.eye_gap + face.across(0.85), -0.1 + face.nod
        )
        socket = np.exp(u * u * np.float32(-1 / 0.07) + v * v * np.float32(-1 / 0.03)) * cover
        canvas.tint(0.2 * socket, face.shadow, window)


def nose(canvas: Canvas, face: Face) -> None:
    """The nose: a lit ball, two nostrils, and a bridge that shades the side away from the light."""
    wide = face.identity.nose_width
    tip, base = face.nose_tip
    away = -1.0 if face.pose.light_angle > 0 else 1.0
    window = face.frame.window(tip - wide * 1.7, 0.0, tip + wide * 1.7, base + 0.16)
    u, v = face.frame.at(window, tip, base)
    lean = u + (v * (1 / max(base, 0.2))) * np.float32(face.across(0.4))  # towards the brow line
    bridge = shapes.common(shapes.box(lean - away * wide * 0.55, v + base * 0.5, 0.05, base * 0.5))
    canvas.tint(0.30 * shapes.soft(bridge, 0.09), face.shadow, window)
    form = shapes.union(
        shapes.ellipse(u, v, wide * 0.74, wide * 0.62 + 0.02),
        shapes.union(
            shapes.ellipse(u - wide * 0.66, v - 0.03, wide * 0.42, wide * 0.40),
            shapes.ellipse(u + wide * 0.66, v - 0.03, wide * 0.42, wide * 0.40),
        ),
        0.08,
    )
    under = shapes.soft(form - 0.015, 0.05) * np.clip(v * (1 / wide) + 0.6, 0, 1)
    canvas.tint(0.55 * under, face.shadow, window)
    ball = face.lit(mix(face.skin, (0.95, 0.42, 0.36), 0.13), window)
    canvas.paint(shapes.coverage(form + 0.02, face.frame.pixel), ball, Label.NOSE, window)
    shine = np.exp(((u + away * 0.06) ** 2 + (v + 0.05) ** 2) * np.float32(-1 / (0.28 * wide) ** 2))
    canvas.tint(0.42 * shine, mix(face.skin, (1, 1, 1), 0.75), window)
    dark = scaled(face.shadow, 0.62)
    for side in (-1.0, 1.0):
        hole = shapes.ellipse(u - side * wide * 0.42, v - wide * 0.42, wide * 0.21, wide * 0.13)
        canvas.tint(0.9 * shapes.coverage(hole, face.frame.pixel), dark, window)
