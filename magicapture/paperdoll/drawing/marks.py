"""What grows or stays on a face: moles, scars, freckles, and the beard."""

from __future__ import annotations

import numpy as np

from . import shapes
from .canvas import Canvas, Label, Window
from .colours import Array, mix, scaled
from .head import Face


def marks(canvas: Canvas, face: Face) -> None:
    """A mole, a scar or freckles, at the place that belongs to this face."""
    draw = {"mole": _mole, "scar": _scar, "freckles": _freckles}.get(face.identity.mark)
    if draw is not None:
        draw(canvas, face)


def _around_mark(face: Face, reach: float) -> tuple[Window, Array, Array]:
    u0, v0 = face.identity.mark_at[0] + face.across(0.85), face.identity.mark_at[1] + face.nod
    window = face.frame.window(u0 - reach, v0 - reach, u0 + reach, v0 + reach)
    return window, *face.frame.at(window, u0, v0)


def _mole(canvas: Canvas, face: Face) -> None:
    window, u, v = _around_mark(face, 0.1)
    spot = shapes.coverage(shapes.circle(u, v, 0.052), face.frame.pixel)
    canvas.tint(spot * face.cover(window), scaled(face.shadow, 0.5), window)


def _scar(canvas: Canvas, face: Face) -> None:
    window, u, v = _around_mark(face, 0.3)
    slant = 0.07 if face.identity.mark_seed % 2 else -0.07
    line = shapes.segment(u, v, (slant, -0.19), (-slant, 0.19))
    cover = face.cover(window)
    sore, pale = mix(face.skin, (0.75, 0.2, 0.2), 0.6), mix(face.skin, (1, 0.9, 0.88), 0.7)
    canvas.tint(0.75 * shapes.soft(line - 0.05, 0.03) * cover, sore, window)
    canvas.tint(shapes.coverage(line - 0.02, face.frame.pixel) * cover, pale, window)


def _freckles(canvas: Canvas, face: Face) -> None:
    rng = np.random.default_rng(face.identity.mark_seed)
    spots = rng.uniform((-0.72, 0.14), (0.72, 0.46), (22, 2)).astype(np.float32)
    window = face.frame.window(-0.95, 0.05, 0.95, 0.6)
    u, v = face.frame.at(window, face.across(0.85), face.nod)
    near = np.full_like(u, 9.0)
    for su, sv in spots:
        np.minimum(near, (u - su) ** 2 + (v - sv) ** 2, out=near)
    inside = face.outline[window] < -0.1
    dots = shapes.coverage(np.sqrt(near) - 0.03, face.frame.pixel) * inside
    canvas.tint(0.8 * dots, mix(face.shadow, (0.45, 0.2, 0.08), 0.5), window)


def beard(canvas: Canvas, face: Face) -> None:
    """Stubble, goatee or full beard; the moustache belongs to the mouth."""
    kind = face.identity.beard
    if kind in ("none", "moustache"):
        return
    tip, low = face.mouth_at
    chin = face.identity.chin
    pixel = face.frame.pixel
    window = face.frame.window(-1.15, 0.1, 1.15, chin + 0.2)
    u, v = face.frame.at(window, tip, low)
    colour = face.lit(face.identity.brow_colour, window, 1.4)
    if kind == "goatee":
        tuft = shapes.ellipse(u, v - (chin - low) * 0.62, 0.27, (chin - low) * 0.52)
        around = shapes.ellipse(u, v - 0.05, face.identity.mouth_width + 0.11, 0.3)
        mouth = shapes.ellipse(u, v - 0.02, face.identity.mouth_width + 0.02, 0.19)
        form = shapes.union(tuft, shapes.without(around, mouth), 0.05)
        cover = shapes.coverage(shapes.common(form, face.outline[window] - 0.05), pixel)
    else:
        cheeks = 0.10 - v - 0.75 * np.minimum(u * u, 0.9)
        mouth = shapes.ellipse(u, v - 0.02, face.identity.mouth_width + 0.03, 0.16)
        full = 0.09 if kind == "beard" else 0.0
        lip = shapes.ellipse(u, v + 0.03, face.identity.mouth_width + 0.16, 0.26)
        area = shapes.common(shapes.union(cheeks, lip, 0.1), face.outline[window] - full)
        cover = shapes.coverage(shapes.without(area, mouth), pixel)
    if kind == "stubble":
        canvas.tint(0.36 * cover, colour, window)
    else:
        canvas.paint(cover, colour, Label.BEARD, window)
