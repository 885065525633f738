"""Masks and landmarks that something else has made of a set's photos, such as another's nodes, and
landmarks estimated from masks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..errors import InputError
from ..faces.align import landmarks_from_mask
from ..faces.protocols import Face
from .faces import face_in
from .masks import INVERTED, is_empty, is_full, looks_inverted
from .photos import Photo, ReferenceSet


def with_masks(references: ReferenceSet, masks: Sequence[Tensor]) -> ReferenceSet:
    """The set with these face masks (1,H,W), one a photo; those that were there are replaced.

    One that marks nothing, as from a search that found no face, counts as none. The set's warnings
    name it, and one that is full or looks inverted. Raises InputError for another count or shape.
    """
    if len(masks) > len(references):
        raise InputError(
            f"There are {len(masks)} face masks for {_photos(references)}; give one for each "
            "photo, in the same order. A node that gives one for each object has to join them "
            "(SAM3 Detect: individual_masks off)."
        )
    empty = [is_empty(mask) for mask in masks]
    kept = [None if none else mask for none, mask in zip(empty, masks, strict=True)]
    filled = references.known("face_masks", kept)
    full = [m is not None and is_full(m) for m in kept]
    inverted = [m is not None and looks_inverted(m) for m in kept]
    told = (
        (empty, "the mask marks nothing, so that it counts as none."),
        (full, "the mask marks the whole picture as face. Mark the face alone."),
        (inverted, INVERTED),
    )
    names = references.names
    warnings = [
        f"{', '.join(name for name, is_so in zip(names, which, strict=True) if is_so)}: {text}"
        for which, text in told
        if any(which)
    ]
    return replace(filled, warnings=(*references.warnings, *warnings))


def with_landmarks(references: ReferenceSet, faces: Sequence[Sequence[Face]]) -> ReferenceSet:
    """The set with the landmarks of faces found in its photos, in each photo's pixels.

    Of several faces the one inside the photo's mask counts; without a mask, the largest. A photo
    without such a face has no landmarks then, and the set's warnings name it. Raises InputError
    for another count.
    """
    points, warnings = [], []
    for photo, found in zip(references, faces, strict=False):
        ordered = tuple(sorted(found, key=lambda face: -face.area))
        chosen = 0 if ordered else None
        if photo.face_mask is not None and not is_empty(photo.face_mask):
            chosen = face_in(photo.face_mask, ordered)
        points.append(None if chosen is None else ordered[chosen].landmarks)
        if chosen is None:
            why = "none of the faces given lies in its mask" if ordered else "no face is given"
            warnings.append(f"{photo.name}: {why}, so that it has no landmarks.")
    points += [None] * (len(faces) - len(points))  # `known` tells of another count
    filled = references.known("landmarks", points)
    return replace(filled, warnings=(*references.warnings, *warnings))


def with_estimated_landmarks(references: ReferenceSet) -> ReferenceSet:
    """The set with missing landmarks estimated from the faces' masks, where there are any."""
    return replace(references, photos=tuple(map(_with_landmarks_of_mask, references)))


def _with_landmarks_of_mask(photo: Photo) -> Photo:
    face = photo.face_mask
    if photo.landmarks is not None or face is None or is_empty(face):
        return photo
    return replace(photo, landmarks=landmarks_from_mask(face))


def _photos(references: ReferenceSet) -> str:
    return f"{len(references)} photo{'s' * (len(references) != 1)}"
