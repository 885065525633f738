"""Hair and hats: a layer behind the head and one before it, fitted to the canonical head."""

from __future__ import annotations

import numpy as np

from . import shapes
from .canvas import Canvas, Frame, Label
from .colours import Array, Colour, mix, planes, scaled
from .traits import Pose, Style


def _strands(frame: Frame, colour: Colour, pose: Pose, centre: float) -> Array:
    """Hair colour with strands that fall from the crown and a band of light: (3, H, W)."""
    u, v = frame.u, frame.v
    radius2 = u * u + (v + 0.1) ** 2
    fan = u / (np.abs(v + 1.35) + 0.45)
    strand = np.sin(fan * 23.0) * 0.055
    band = np.exp((np.sqrt(radius2) - centre) ** 2 * np.float32(-60))
    side = 1.0 + 0.16 * pose.light_strength * (u * np.float32(pose.light_angle) - 0.3 * v - 0.1)
    light = (side + strand + 0.20 * band)[None]
    return np.clip(planes(colour) * light + 0.05 * band, 0.0, 1.0)


def behind(canvas: Canvas, frame: Frame, style: Style, pose: Pose) -> None:
    """What of the hair lies behind the neck and the head."""
    u, v, kind = frame.u, frame.v, style.hair
    long = style.hair_length
    if kind == "bob":
        form = _bob(u, v, long)
    elif kind == "long":
        form = _mane(u, v, long)
    elif kind == "curly":
        form = shapes.discs(u, v, _curls(1.0 + 0.12 * long, 1.12), 0.08)
    elif kind == "bun":
        form = shapes.circle(u, v + 1.36, 0.33 + 0.07 * long)
    else:
        return
    dark = _strands(frame, scaled(style.hair_colour, 0.74), pose, 9.0)
    canvas.paint(shapes.coverage(form, frame.pixel), dark, Label.HAIR)


def _bob(u: Array, v: Array, long: float) -> Array:
    return shapes.box(u, v + 0.12, 1.24, 1.14 + 0.15 * long, 0.8)


def _mane(u: Array, v: Array, long: float) -> Array:
    return shapes.box(u, v - 0.45, 1.25, 1.75 + 0.3 * long, 0.85)


def _curls(reach: float, end: float) -> list[tuple[float, float, float]]:
    angles = np.linspace(-end * np.pi / 1.9, end * np.pi / 1.9, 11)
    ring = [
        (float(np.sin(a)) * reach, -0.14 - float(np.cos(a)) * reach * 1.05, 0.36) for a in angles
    ]
    return [*ring, (0.0, -0.3, 1.0)]


def before(canvas: Canvas, frame: Frame, style: Style, pose: Pose) -> None:
    """What of the hair, or the hat, lies over the head."""
    kind = style.hair
    if style.fringe:
        _fringe(canvas, frame, style, pose)
    if kind == "bald":
        return
    if kind == "beanie":
        _beanie(canvas, frame, style, pose)
        return
    u = frame.u - np.float32(0.05 * pose.turn)
    form = _front(kind, u, frame.v, style.hair_length)
    shine = 0.86 if kind in ("short", "parted", "bun", "bob", "long") else 1.02
    cover = shapes.coverage(form, frame.pixel)
    canvas.paint(cover, _strands(frame, style.hair_colour, pose, shine), Label.HAIR)
    if kind != "curly":
        edge = shapes.soft(-form - 0.02, 0.05) * cover
        canvas.tint(0.28 * edge, scaled(style.hair_colour, 0.55))


def _front(kind: str, u: Array, v: Array, long: float) -> Array:
    cap = shapes.ellipse(u, v + 0.12, 1.09, 1.22)
    if kind == "short":
        line = -0.56 - 0.1 * long + 0.10 * u * u + 0.9 * np.maximum(np.abs(u) - 0.84, 0) * 2
        hair = shapes.common(cap, v - line - 0.03 * np.abs(np.sin(u * 8)))
        sides = shapes.common(cap, 0.93 - np.abs(u) - 0.06 * (v + 0.6), v + 0.12)
        return shapes.union(hair, sides, 0.05)
    if kind == "parted":
        sweep = -0.86 + 0.52 * np.abs(u + 0.42) ** 1.5
        hair = shapes.common(shapes.ellipse(u, v + 0.17, 1.12, 1.25), v - sweep)
        sides = shapes.common(cap, 0.92 - np.abs(u), v - 0.02)
        return shapes.union(hair, sides, 0.05)
    if kind == "bun":
        return shapes.common(cap, v + 0.70 - 0.42 * u * u)
    if kind == "curly":
        crown = [
            (float(x), -0.84 + 0.32 * float(x) ** 2, 0.27) for x in np.linspace(-0.95, 0.95, 7)
        ]
        top = shapes.common(cap, v + 0.9 - 0.32 * u * u)
        return shapes.union(shapes.discs(u, v, crown, 0.05), top, 0.05)
    if kind == "bob":
        fringe = v + 0.47 - 0.05 * u * u
        curtain = 0.86 - np.abs(u) + 0.05 * np.maximum(v, 0)
        return shapes.common(_bob(u, v, long), shapes.union(fringe, curtain, 0.1))
    middle = v + 0.98 - 0.75 * np.abs(u) ** 1.3
    curtain = 0.87 - np.abs(u) - 0.06 * np.maximum(v, 0)
    return shapes.common(_mane(u, v, long), shapes.union(middle, curtain, 0.12))


def _fringe(canvas: Canvas, frame: Frame, style: Style, pose: Pose) -> None:
    u, v = frame.u - np.float32(0.05 * pose.turn), frame.v
    ends = np.float32(-0.72 + 0.56 * style.fringe) + 0.06 * np.abs(np.sin(u * 9)) - 0.08 * u * u
    form = shapes.common(shapes.ellipse(u, v + 0.12, 1.07, 1.2), v - ends)
    cover = shapes.coverage(form, frame.pixel)
    canvas.paint(cover, _strands(frame, style.hair_colour, pose, 0.86), Label.HAIR)
    edge = shapes.soft(-form - 0.02, 0.05) * cover
    canvas.tint(0.28 * edge, scaled(style.hair_colour, 0.55))


def _beanie(canvas: Canvas, frame: Frame, style: Style, pose: Pose) -> None:
    u, v = frame.u, frame.v
    tuft = shapes.common(shapes.ellipse(u, v + 0.12, 1.06, 1.2), v - 0.12 * style.hair_length)
    sides = shapes.common(tuft, 0.9 - np.abs(u))
    hair = _strands(frame, style.hair_colour, pose, 9.0)
    canvas.paint(shapes.coverage(sides, frame.pixel), hair, Label.HAIR)
    crown = shapes.common(shapes.ellipse(u, v + 0.24, 1.13, 1.26), v + 0.62)
    cuff = shapes.box(u, v + 0.62 - 0.05 * u * u, 1.12, 0.15, 0.1)
    bobble = shapes.circle(u, v + 1.5, 0.2)
    rib = 0.93 + 0.07 * np.sin(u / np.sqrt(np.maximum(1.4 - u * u, 0.1)) * 16)
    light = 1.0 + 0.2 * pose.light_strength * (u * np.float32(pose.light_angle) - 0.25 * (v + 0.9))
    knit = np.clip(planes(style.accent_colour) * (rib * light)[None], 0, 1)
    canvas.paint(shapes.coverage(bobble, frame.pixel), style.clothes_colour, Label.HAT)
    canvas.paint(shapes.coverage(crown, frame.pixel), knit, Label.HAT)
    fold = np.clip(planes(mix(style.accent_colour, (1, 1, 1), 0.12)) * (rib * light)[None], 0, 1)
    canvas.tint(
        0.35 * shapes.soft(cuff - 0.03, 0.05) * (v < -0.6) * shapes.coverage(crown, frame.pixel),
        scaled(style.accent_colour, 0.5),
    )
    canvas.paint(shapes.coverage(cuff, frame.pixel), fold, Label.HAT)
