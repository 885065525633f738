"""What surrounds the head: background, neck and clothes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import shapes
from .canvas import Canvas, Frame, Label
from .colours import Array, Colour, mix, planes, scaled
from .traits import Pose, Style


def background(canvas: Canvas, style: Style) -> None:
    """Fills the picture with the style's background, fixed to the picture and not to the doll."""
    size = canvas.image.shape[-1]
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x, y = axis[None, :], axis[:, None]
    pixel = 2 / size
    share = _pattern(style, x, y, pixel)
    ground, pattern = planes(style.background_colour), planes(style.pattern_colour)
    canvas.image[:] = ground + share * (pattern - ground)
    canvas.image *= 1.04 - 0.13 * (x * x + (y + 0.1) ** 2)  # a soft vignette


def _pattern(style: Style, x: Array, y: Array, pixel: float) -> Array:
    kind = style.background
    if kind == "plain":
        return np.zeros((1, 1), np.float32)
    if kind == "gradient":
        return np.clip(0.5 + 0.5 * y + 0.12 * x, 0, 1)
    pitch = 0.36 * style.pattern_scale
    if kind == "sunburst":
        angle = np.arctan2(y + 0.1, x) * (8 / np.pi)
        radius = np.sqrt(x * x + (y + 0.1) ** 2) + np.float32(0.05)
        return shapes.coverage(_wave(angle + style.pattern_angle) * radius * (np.pi / 8), pixel)
    c, s = np.cos(style.pattern_angle), np.sin(style.pattern_angle)
    u = (x * np.float32(c) + y * np.float32(s)) * (1 / pitch)
    if kind == "striped":
        return shapes.coverage(_wave(u * 1.4) * (pitch / 1.4), pixel)
    if kind == "checked":
        a, b = _wave(x * (1 / pitch)), _wave(y * (1 / pitch))
        first, second = (shapes.coverage(w * pitch, pixel) for w in (a, b))
        return first + second - 2 * first * second
    row = y * (1 / pitch) * 1.2
    odd = np.floor(row) % 2
    du = (x * (1 / pitch) + 0.5 * odd) % 1 - 0.5
    dv = row % 1 - 0.5
    return shapes.coverage((np.sqrt(du * du + dv * dv) - 0.3) * pitch, pixel)


def _wave(phase: Array) -> Array:
    """Signed distance, in periods, to stripes of half a period."""
    return np.abs(phase % 1.0 - 0.5) - 0.25


def neck(canvas: Canvas, frame: Frame, skin: Colour, shadow: Colour) -> None:
    """The neck: the face's own skin in the shadow of the chin, but no part of the face mask."""
    u, v = frame.u, frame.v
    form = shapes.box(u, v - 1.3, 0.46, 0.75, 0.1)
    cover = shapes.coverage(form, frame.pixel)
    canvas.paint(cover, scaled(skin, 0.93), Label.NECK)
    fall = np.clip(1.25 - 0.9 * (v - 0.9), 0.0, 1.0) * 0.62
    canvas.tint(cover * fall, shadow)


def clothes(canvas: Canvas, frame: Frame, style: Style, pose: Pose, skin: Colour) -> None:
    """Shoulders and collar of one of six garments."""
    u, v = frame.u, frame.v
    side = u * np.float32(pose.light_angle) * 0.8
    fold = shapes.soft(np.abs(np.abs(u) - 1.12 + 0.1 * v) - 0.02, 0.09)
    light = 1.0 + 0.16 * pose.light_strength * (side - 0.2) - 0.10 * fold
    garment: Callable[[], None] = getattr(_Tailor(canvas, frame, style, light, skin), style.clothes)
    garment()


def _torso(frame: Frame) -> Array:
    u, v = frame.u, frame.v
    slope = (1.34 + 0.13 * np.abs(u) + 0.16 * u * u - v) * 0.93
    shoulders = shapes.common(slope, shapes.box(u, v - 2.6, 1.72, 1.1, 0.6))
    return shapes.union(shoulders, shapes.box(u, v - 1.9, 0.62, 0.4, 0.2), 0.1)


class _Tailor:
    """Draws one garment over the shoulders; each method is a kind of clothes."""

    def __init__(
        self, canvas: Canvas, frame: Frame, style: Style, light: Array, skin: Colour
    ) -> None:
        self.canvas, self.frame, self.style = canvas, frame, style
        self.light, self.skin = light, skin
        self.u, self.v = frame.u, frame.v
        self.torso = _torso(frame)

    def _fill(self, form: Array, colour: Colour, label: Label = Label.CLOTHES) -> None:
        cover = shapes.coverage(form, self.frame.pixel)
        cloth = np.clip(planes(colour) * self.light, 0, 1)
        self.canvas.paint(cover, cloth, label)

    def _line(self, form: Array, width: float, share: float = 0.45) -> None:
        line = shapes.common(np.abs(form) - width, self.torso)
        dark = scaled(self.style.clothes_colour, 0.45)
        self.canvas.tint(share * shapes.coverage(line, self.frame.pixel), dark)

    def shirt(self) -> None:
        """A T-shirt with a round, ribbed neckline."""
        neckline = shapes.ellipse(self.u, self.v - 1.3, 0.56, 0.34)
        self._fill(shapes.without(self.torso, neckline), self.style.clothes_colour)
        rib = shapes.without(shapes.common(neckline - 0.1, self.v * -1 + 1.28), neckline)
        self._fill(rib, self.style.accent_colour)

    def hoodie(self) -> None:
        """A hoodie: a thick hood around the neck and two cords."""
        self._fill(self.torso, self.style.clothes_colour)
        hood = shapes.without(
            shapes.ellipse(self.u, self.v - 1.36, 0.86, 0.42),
            shapes.ellipse(self.u, self.v - 1.22, 0.45, 0.32),
        )
        hood = shapes.common(hood, 1.16 - self.v)
        self._fill(hood, mix(self.style.clothes_colour, (1, 1, 1), 0.14))
        self._line(shapes.ellipse(self.u, self.v - 1.36, 0.86, 0.42), 0.025)
        for side in (-1.0, 1.0):
            cord = shapes.box(self.u - side * 0.27, self.v - 1.83, 0.035, 0.2, 0.03)
            self._fill(cord, self.style.accent_colour)

    def suit(self) -> None:
        """A suit with lapels over a white shirt and a tie."""
        wide = np.abs(self.u)
        self._fill(self.torso, self.style.clothes_colour)
        vee = shapes.common((wide - 0.5 + 0.62 * (self.v - 1.36)) * 0.85, 1.3 - self.v)
        self._fill(vee, (0.96, 0.96, 0.97))
        tie = shapes.common(wide - 0.10 - 0.06 * (self.v - 1.4), 1.42 - self.v)
        self._fill(tie, self.style.accent_colour)
        knot = shapes.box(self.u, self.v - 1.46, 0.13, 0.085, 0.05)
        self._fill(knot, scaled(self.style.accent_colour, 0.82))
        lapel = shapes.common((wide - 0.86 + 0.62 * (self.v - 1.36)) * 0.85, 1.3 - self.v)
        self._line(lapel, 0.02, 0.6)
        self._line(vee, 0.02, 0.6)

    def turtleneck(self) -> None:
        """A turtleneck, closed up to the chin."""
        roll = shapes.box(self.u, self.v - 1.34, 0.56, 0.22, 0.12)
        self._fill(shapes.union(self.torso, roll, 0.1), self.style.clothes_colour)
        self._fill(roll, mix(self.style.clothes_colour, (1, 1, 1), 0.1))
        self._line(roll, 0.022)

    def dress(self) -> None:
        """A dress with a wide neckline and a row of beads."""
        neckline = shapes.ellipse(self.u, self.v - 1.2, 0.98, 0.58)
        self._fill(shapes.common(self.torso, neckline - 0.03), self.skin, Label.NECK)
        self._fill(shapes.without(self.torso, neckline), self.style.clothes_colour)
        chain = shapes.ellipse(self.u, self.v - 1.2, 0.44, 0.40)
        beads = shapes.common(np.abs(chain) - 0.045, 1.24 - self.v)
        self._fill(beads, self.style.accent_colour, Label.CLOTHES)

    def sweater(self) -> None:
        """A sweater with broad stripes in a second colour."""
        neckline = shapes.ellipse(self.u, self.v - 1.28, 0.54, 0.28)
        body = shapes.without(self.torso, neckline)
        self._fill(body, self.style.clothes_colour)
        bands = _wave((self.v - 0.1 * self.u * self.u) * (1 / 0.27)) * 0.27
        self._fill(shapes.common(body, bands), self.style.accent_colour)
        collar = shapes.common(np.abs(neckline) - 0.055, 1.28 - self.v)
        self._fill(collar, mix(self.style.clothes_colour, (0, 0, 0), 0.2))
