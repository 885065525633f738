"""The reference doctor: is each photo fit to learn from, and do they belong together?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import Role
from ..data import Photo, ReferenceSet
from ..data.faces import FoundFace
from ..faces.align import FFHQ_TEMPLATE, similarity, transform
from ..faces.analyzer import embed_faces
from ..faces.embed import FaceEmbedder
from ..faces.masks import beyond, outside
from ..faces.protocols import Face
from ..metrics import among
from . import measure
from .verdicts import Limits, PhotoCheck, SetCheck, Verdict

_FEW, _FLAT_YAW, _FLAT_LIGHT = 4, 15.0, 0.03


@dataclass(frozen=True)
class _Seen:
    """What comparisons with other photos need of one."""

    thumbnail: Tensor
    face: Tensor | None = None
    embedding: Tensor | None = None


def judge_photos(
    references: ReferenceSet,
    found: Sequence[FoundFace],
    role: Role,
    *,
    resolution: int = 512,
    embedder: FaceEmbedder | None = None,
    limits: Limits | None = None,
) -> SetCheck:
    """Judge photos whose faces `data.faces.with_faces` found.

    role: photos of a subject should show one person; a style's portraits need not. resolution: of
    the training. Without a face embedder, likeness is left out.
    """
    limits = limits or Limits()
    photos, seen = [], []
    for photo, one in zip(references, found, strict=True):
        known = embedder if role == "subject" else None
        figures, look = _figures(photo, one, resolution, known)
        mask = one.mask_origin if one.origin in ("empty", "full") else None
        photos.append(PhotoCheck(photo.name, "use", (), len(one.faces), mask=mask, **figures))
        seen.append(look)
    photos = _with_twins(photos, seen, limits)
    photos = _with_likeness(photos, seen)
    usual = statistics.median([p.likeness for p in photos if p.likeness is not None] or [0.0])
    judged = tuple(_judged(photo, usual, limits) for photo in photos)
    return _of_the_set(judged, seen, role, resolution)


def _figures(
    photo: Photo, found: FoundFace, resolution: int, embedder: FaceEmbedder | None
) -> tuple[dict[str, Any], _Seen]:
    """The fields of a `PhotoCheck` that one photo gives, and what comparisons need."""
    image, own = photo.image, photo.face_mask if found.origin == "yours" else None
    thumbnail = measure.thumbnail(image)
    if (face := found.face) is None:
        return {}, _Seen(thumbnail)
    points = face.landmarks
    grey, turn = measure.aligned(image, points), measure.angles(points)
    brightness, side = measure.light(grey)
    figures = {
        "box": tuple(round(v, 1) for v in face.box.tolist()),
        "width": face.width * resolution / min(image.shape[-2:]),
        "sharpness": measure.sharpness(image, points, resolution),
        "yaw": turn.yaw,
        "pitch": turn.pitch,
        "roll": turn.roll,
        "brightness": brightness,
        "side_light": side,
        "cut": beyond(face, (image.shape[-2], image.shape[-1])),
        "hidden": None if found.parts is None else _hidden(found.parts, face),
        "narrow": None if own is None else outside(own, face),
    }
    figures = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    embedding = None
    if embedder is not None:
        embedding = embed_faces(embedder, [image], [face.landmarks])[0].cpu()
    return figures, _Seen(thumbnail, measure.face_print(grey), embedding)


def _hidden(parts: Tensor, face: Face) -> float:
    points = face.landmarks[None]
    return measure.covered(parts, transform(similarity(points, FFHQ_TEMPLATE), points)[0])


def _with_twins(
    photos: list[PhotoCheck], seen: Sequence[_Seen], limits: Limits
) -> list[PhotoCheck]:
    """Name the earlier photo that each is nearly the same as."""
    named = []
    for i, photo in enumerate(photos):
        likes = [(_same(seen[i], seen[j]), photos[j].name) for j in range(i)]
        like, name = max(likes, default=(0.0, ""))
        named.append(replace(photo, twin=name) if like > limits.twin else photo)
    return named


def _same(one: _Seen, other: _Seen) -> float:
    whole = float(one.thumbnail @ other.thumbnail)
    if one.face is None or other.face is None:
        return whole
    return max(whole, float(one.face @ other.face))


def _with_likeness(photos: list[PhotoCheck], seen: Sequence[_Seen]) -> list[PhotoCheck]:
    """Each photo's median cosine to the others: a few strangers do not move it."""
    vectors = {i: s.embedding for i, s in enumerate(seen) if s.embedding is not None}
    if len(vectors) < 2:
        return photos
    result = list(photos)
    for i, one in vectors.items():
        cosines = [float(one @ other) for j, other in vectors.items() if j != i]
        result[i] = replace(photos[i], likeness=round(statistics.median(cosines), 4))
    return result


def _judged(photo: PhotoCheck, usual: float, limits: Limits) -> PhotoCheck:
    findings = list(_findings(photo, usual, limits))
    verdicts = {verdict for verdict, _ in findings}
    verdict: Verdict = (
        "leave out" if "leave out" in verdicts else "care" if "care" in verdicts else "use"
    )
    return replace(photo, verdict=verdict, reasons=tuple(text for _, text in findings))


def _findings(p: PhotoCheck, usual: float, limits: Limits) -> Iterator[tuple[Verdict, str]]:
    if p.mask is not None:
        yield "leave out", p.mask
    if p.width is None:
        yield "leave out", "no face was found" + (" inside your own mask" if p.faces else "")
        return
    yield from _who(p, usual, limits)
    yield from _what(p, limits)
    if p.twin is not None:
        yield "care", f"nearly the same as {p.twin}, and counts twice"


def _who(p: PhotoCheck, usual: float, limits: Limits) -> Iterator[tuple[Verdict, str]]:
    if p.faces > 1:
        yield "care", f"{p.faces} faces; check that the right one is marked"
    if p.likeness is not None and usual > 0:
        share = p.likeness / usual
        if share < limits.stranger:
            yield (
                "leave out",
                f"another person, it seems (likeness {p.likeness:.2f}; the set's {usual:.2f})",
            )
        elif share < limits.unlike:
            yield (
                "care",
                f"less like the person than the rest ({p.likeness:.2f}; the set's {usual:.2f})",
            )


def _what(p: PhotoCheck, limits: Limits) -> Iterator[tuple[Verdict, str]]:
    """Findings on size, sharpness, pose, light and cover; all figures are there."""
    assert p.width is not None and p.sharpness is not None and p.cut is not None
    assert p.yaw is not None and p.pitch is not None
    assert p.brightness is not None and p.side_light is not None
    small = f"the face is {p.width:.0f} px wide at training size; crop the photo around it"
    yield from _graded(-p.width, -limits.face_small, -limits.face_tiny, small)
    blurred = f"blurred (sharpness {p.sharpness:.2f})"
    yield from _graded(-p.sharpness, -limits.soft, -limits.blurred, blurred)
    turn = abs(p.yaw)
    yield from _graded(turn, limits.turned, limits.profile, f"turned by {turn:.0f} degrees")
    if abs(p.pitch) > limits.tilted:
        yield "care", f"bent {'up' if p.pitch > 0 else 'down'} by {abs(p.pitch):.0f} degrees"
    if p.narrow is not None and p.narrow > limits.narrow:  # docs/photos.md
        yield "care", f"your own mask leaves out {p.narrow:.0%} of the face; better too large"
    yield from _graded(p.cut, limits.cut, limits.cut_off, f"{p.cut:.0%} of the face is cut off")
    if p.hidden is not None:
        yield from _graded(
            p.hidden, limits.hidden, limits.covered, f"{p.hidden:.0%} of the face is covered"
        )
    if not limits.dark <= p.brightness <= limits.bright:
        yield "care", "too dark" if p.brightness < limits.dark else "too bright"
    if abs(p.side_light) > limits.side_light:
        yield "care", "lit from one side only"


def _graded(value: float, care: float, out: float, text: str) -> Iterator[tuple[Verdict, str]]:
    if value > care:
        yield ("leave out" if value > out else "care"), text


def _of_the_set(
    photos: tuple[PhotoCheck, ...], seen: Sequence[_Seen], role: Role, resolution: int
) -> SetCheck:
    kept = [i for i, photo in enumerate(photos) if photo.verdict != "leave out"]
    vectors = [v for i in kept if (v := seen[i].embedding) is not None]
    identity = spread = None
    if len(vectors) > 1:
        own = among(torch.stack(vectors))
        identity, spread = float(own.mean()), float(own.std())
    yaws = [y for i in kept if (y := photos[i].yaw) is not None]
    lights = [b for i in kept if (b := photos[i].brightness) is not None]
    yaw_spread = max(yaws) - min(yaws) if yaws else None
    light_spread = statistics.pstdev(lights) if lights else None
    advice = []
    if len(kept) < _FEW:
        few = f"{len(kept)} of the photos can be used, which is few; 4 to 6 work well."
        if role == "subject":  # docs/photos.md
            few += " With fewer the face seldom takes another expression than theirs."
        advice.append(few)
    if len(kept) > 1 and role == "subject":
        if yaw_spread is not None and yaw_spread < _FLAT_YAW:
            advice.append("All heads look the same way; add one from another angle.")
        if light_spread is not None and light_spread < _FLAT_LIGHT:
            advice.append("The light is the same in all photos; add one in other light.")
    if identity is not None and identity < 0.25:
        advice.append(
            "The photos are hardly alike: several persons, or a face recognition model that does "
            "not fit."
        )
    return SetCheck(
        photos, role, resolution, identity, spread, yaw_spread, light_spread, tuple(advice)
    )
