"""The features that move: eyes, brows, mouth; and the glasses before them."""

from __future__ import annotations

import numpy as np

from . import shapes
from .canvas import Canvas, Label, Window
from .colours import Array, Colour, mix, scaled
from .head import Face

_WHITE: Colour = (0.97, 0.96, 0.95)
_DARK: Colour = (0.09, 0.06, 0.07)


def eye_centre(face: Face, side: float) -> tuple[float, float]:
    """The middle of an eye; side -1 is the left of the picture."""
    return side * face.identity.eye_gap * (1 - 0.05 * side * face.pose.turn) + face.across(
        0.85
    ), face.nod


def eyes(canvas: Canvas, face: Face) -> None:
    """Both eyes: white, iris, pupil, spark, and the upper lid as a dark line."""
    one, pixel = face.identity, face.frame.pixel
    for side, label in ((-1.0, Label.LEFT_EYE), (1.0, Label.RIGHT_EYE)):
        u0, v0 = eye_centre(face, side)
        half = one.eye_width * (1 - 0.09 * side * face.pose.turn)
        high = one.eye_height * face.pose.lids
        reach = half + 0.1
        window = face.frame.window(u0 - reach, v0 - reach, u0 + reach, v0 + reach)
        u, v = face.frame.at(window, u0, v0)
        v = v + np.float32(side * one.eye_tilt) * u  # outer corner up
        upper = shapes.arch(u, v, half, high)
        lower = shapes.arch(u, -v, half, high * 0.72)
        almond = shapes.common(upper, lower)
        inside = shapes.coverage(almond, pixel)
        canvas.paint(inside, _WHITE, label, window)
        top = np.clip(1.0 - (v + high) * (1 / (0.9 * high)), 0, 1)
        canvas.tint(0.30 * inside * top, face.shadow, window)
        gu = u - np.float32(face.pose.gaze[0] * half * 0.36)
        gv = v - np.float32(face.pose.gaze[1] * high * 0.3)
        radius = min(0.82 * high + 0.02, half * 0.62)
        _iris(canvas, face, (gu, gv), radius, inside, window)
        lid = shapes.common(np.abs(upper + 0.008) - 0.028, np.abs(u) - half * 1.04)
        canvas.tint(shapes.coverage(lid, pixel), _DARK, window)
        crease = shapes.common(np.abs(upper - 0.085) - 0.008, np.abs(u) - half * 0.9)
        canvas.tint(0.5 * shapes.coverage(crease, pixel), face.shadow, window)
        under = shapes.common(np.abs(lower) - 0.006, np.abs(u) - half * 0.95)
        canvas.tint(0.6 * shapes.coverage(under, pixel), face.shadow, window)


def _iris(
    canvas: Canvas,
    face: Face,
    at: tuple[Array, Array],
    radius: float,
    inside: Array,
    window: Window,
) -> None:
    u, v = at
    pixel = face.frame.pixel
    ring = inside * shapes.coverage(shapes.circle(u, v, radius), pixel)
    canvas.tint(ring, scaled(face.identity.iris, 0.5), window)
    inner = inside * shapes.coverage(shapes.circle(u, v, radius * 0.84), pixel)
    canvas.tint(inner, face.identity.iris, window)
    glow = inner * np.clip(v * (1 / radius) + 0.1, 0, 1)
    canvas.tint(0.5 * glow, mix(face.identity.iris, (1, 1, 1), 0.45), window)
    pupil = inside * shapes.coverage(shapes.circle(u, v, radius * 0.46), pixel)
    canvas.tint(pupil, _DARK, window)
    aside = -0.34 * radius if face.pose.light_angle < 0 else 0.34 * radius
    spark = shapes.coverage(shapes.circle(u - aside, v + 0.36 * radius, radius * 0.26), pixel)
    canvas.tint(inside * spark, (1.0, 1.0, 1.0), window)


def brows(canvas: Canvas, face: Face) -> None:
    """Both brows: tapered arcs in the colour of this person's own hair."""
    one = face.identity
    for side, label in ((-1.0, Label.LEFT_BROW), (1.0, Label.RIGHT_BROW)):
        u0, v0 = eye_centre(face, side)
        v0 -= one.brow_height + 0.02 * face.pose.smile
        half = one.eye_width * 1.22
        window = face.frame.window(u0 - half - 0.05, v0 - 0.25, u0 + half + 0.05, v0 + 0.25)
        u, v = face.frame.at(window, u0, v0)
        x = u * (1 / half)
        v = v + np.float32(side * one.brow_angle) * u + 0.07 * (1.0 - x * x)
        thick = (
            one.brow_thickness
            * (1.0 - np.float32(0.45 * side) * x)
            * np.sqrt(np.clip(1.06 - x * x, 0.0, 1.0))
        )
        form = shapes.common(np.abs(v) - thick, np.abs(u) - half)
        canvas.paint(shapes.coverage(form, face.frame.pixel), one.brow_colour, label, window)


def mouth(canvas: Canvas, face: Face) -> None:
    """The mouth: two lips that a smile bends and parts, teeth between them, moustache above."""
    one, smile, pixel = face.identity, face.pose.smile, face.frame.pixel
    u0, v0 = face.mouth_at
    half = one.mouth_width * (1 + 0.16 * max(smile, 0.0))
    window = face.frame.window(u0 - half - 0.2, v0 - 0.36, u0 + half + 0.2, v0 + 0.36)
    u, v = face.frame.at(window, u0, v0)
    x = np.clip(u * (1 / half), -1.2, 1.2)
    x2 = x * x
    line = v + np.float32(0.16 * smile) * (x2 - 0.45)  # 0 where the lips meet
    edge = np.clip(1.0 - x2, 0.0, 1.0)
    ends = np.abs(u) - half
    bow = one.lip_fullness * (0.82 * edge - 0.24 * np.exp(x2 * np.float32(-16)))
    gap = 0.17 * max(smile - 0.35, 0.0)
    opening = line - gap * edge
    red = mix(mix(face.skin, face.shadow, 0.42), (0.80, 0.16, 0.22), 0.25 + 0.5 * one.lip_redness)
    above = shapes.common(-line - bow, line, ends)
    below = shapes.common(opening - one.lip_fullness * 1.15 * edge, -opening, ends)
    hollow = shapes.soft(shapes.common(opening - 0.19, 0.12 - opening, ends + 0.1), 0.06)
    canvas.tint(0.4 * hollow * face.cover(window), face.shadow, window)
    lip = shapes.coverage(below, pixel)
    canvas.paint(lip, mix(red, (1, 0.8, 0.78), 0.12), Label.LOWER_LIP, window)
    shine = np.exp(x2 * np.float32(-5) - ((opening - 0.6 * one.lip_fullness) * 22) ** 2)
    canvas.tint(0.35 * shine * lip, mix(red, (1, 1, 1), 0.6), window)
    canvas.paint(shapes.coverage(above, pixel), scaled(red, 0.84), Label.UPPER_LIP, window)
    if gap > 0.01:
        hole = shapes.coverage(shapes.common(-line, opening, ends), pixel)
        canvas.paint(hole, (0.30, 0.07, 0.08), Label.MOUTH, window)
        teeth = hole * shapes.coverage(line - 0.72 * gap * edge, pixel)
        canvas.tint(teeth, _WHITE, window)
    seam = shapes.common(np.abs(line) - 0.014, np.abs(u) - half * 1.05)
    canvas.tint(0.85 * shapes.coverage(seam, pixel), scaled(face.shadow, 0.5), window)
    if one.beard in ("moustache", "goatee", "beard"):
        _moustache(canvas, face, u, line + bow, window)


def _moustache(canvas: Canvas, face: Face, u: Array, v: Array, window: Window) -> None:
    reach = face.identity.mouth_width * (1.12 if face.identity.beard == "moustache" else 0.95)
    x2 = np.minimum((u * (1 / reach)) ** 2, 1.0)
    middle = v + 0.09 - 0.12 * x2
    form = shapes.common(np.abs(middle) - 0.085 * np.sqrt(1.0 - x2 * 0.96), np.abs(u) - reach)
    cover = shapes.coverage(form, face.frame.pixel)
    canvas.paint(cover, face.lit(face.identity.brow_colour, window, 1.4), Label.BEARD, window)


def glasses(canvas: Canvas, face: Face) -> None:
    """Round or square frames with a bridge, temples and a faint gleam on the lens."""
    one, pixel = face.identity, face.frame.pixel
    if one.glasses == "none":
        return
    window = face.frame.window(-1.15, -0.42, 1.15, 0.5)
    rims = None
    lens = None
    for side in (-1.0, 1.0):
        u0, v0 = eye_centre(face, side)
        u, v = face.frame.at(window, u0 + side * 0.015, v0 + 0.02)
        if one.glasses == "round":
            form = shapes.circle(u, v, 0.335)
        else:
            form = shapes.box(u, v, 0.345, 0.25, 0.07)
        rims = np.abs(form) if rims is None else shapes.union(rims, np.abs(form))
        lens = form if lens is None else shapes.union(lens, form)
    assert rims is not None and lens is not None
    u, v = face.frame.at(window, face.across(0.95), face.nod)
    gap = one.eye_gap - 0.31
    bridge = shapes.common(np.abs(v + 0.05 + 0.04 * (1 - (u * 8) ** 2)), np.abs(u) - gap)
    arms = shapes.common(
        np.abs(v + 0.05), one.eye_gap + 0.34 - np.abs(u), face.outline[window] - 0.03
    )
    gleam = np.abs(u * 0.8 + v - 0.1) - 0.06
    canvas.tint(0.13 * shapes.coverage(lens, pixel), (0.85, 0.95, 1.0), window)
    canvas.tint(0.18 * shapes.coverage(shapes.common(lens + 0.05, gleam), pixel), _WHITE, window)
    frame = shapes.common(shapes.union(shapes.union(rims, bridge), arms)) - 0.036
    canvas.paint(shapes.coverage(frame, pixel), one.glasses_colour, Label.GLASSES, window)
