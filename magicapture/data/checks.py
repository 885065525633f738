"""The look at a concept's photos before step 1: what cannot work stops here, with advice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import Recipe, Role, SubjectIs
from ..errors import InputError
from ..losses import needs
from .concepts import Learnable
from .masks import is_empty, is_full
from .photos import Photo, ReferenceSet, tensor_digest

MIN_SIDE = 64
"""Shortest side of a usable photo, in pixels."""

_MAX_UPSCALE = 2.0
_OVERSHOOT = 0.01  # beyond 0..1: what a sharp resize leaves, clamped later
_MAKE_FACE_MASKS = "Make one (magicapture masks; in ComfyUI: Make Face Masks)"
_MAKE_CUT_OUTS = (
    "Give one: NAME.mask.png beside the photo, a cut-out with transparency, magicapture masks "
    "--cut-out, or in ComfyUI the MASK of Remove Background or SAM3 Detect at Load Photo Set"
)
_UNMASKED = "train without masks (--without-masks; in ComfyUI: Tune Recipe, masks off)"


def check_photos(learnable: Learnable, recipe: Recipe) -> tuple[str, ...]:
    """Return what the user should know, what was noticed while loading first.

    Raises InputError that lists every photo which cannot be used, what was expected, what came
    and what to do.
    """
    concept, references = learnable.concept, learnable.photos
    count = len(references)
    if count < max(1, recipe.min_images):
        raise InputError(
            f"There {'is' if count == 1 else 'are'} {count or 'no'} photo{'s' * (count != 1)} for "
            f"{concept.token}; expected {recipe.min_images} or more (4 to 6 work well). Add photos."
        )
    problems: dict[str, list[str]] = {}
    for photo in references:
        for text in _problems(photo, needs_masks(recipe, concept.role), recipe.subject_is):
            problems.setdefault(text, []).append(photo.name)
    if problems:
        lines = [f"- {', '.join(names)}: {text}" for text, names in problems.items()]
        raise InputError("\n".join([f"The photos for {concept.token} cannot be used:", *lines]))
    return (*references.warnings, *_size_warnings(references, recipe), *_duplicates(references))


def needs_masks(recipe: Recipe, role: Role = "subject") -> bool:
    """Whether every photo of a concept has to have a mask of its face, or of the thing."""
    if recipe.is_whole(role):
        return False
    return recipe.masked or "face masks" in needs(recipe)


def check_apart(subject: Learnable, style: Learnable) -> tuple[str, ...]:
    """Return which pictures both concepts are learned from; raises InputError where all are."""
    known = {tensor_digest(photo.image): photo.name for photo in subject.photos}
    shared = [p.name for p in style.photos if tensor_digest(p.image) in known]
    if len(shared) == len(style.photos):
        raise InputError(
            f"{subject.concept.token} and {style.concept.token} are given the same pictures; give "
            "the person's photos to one and portraits of other people in the style to the other."
        )
    return tuple(
        f"{name}: both {subject.concept.token} and {style.concept.token} are learned from this "
        "picture; leave it out of one of them."
        for name in shared
    )


def _problems(photo: Photo, masked: bool, what: SubjectIs) -> Iterator[str]:
    height, width = photo.size
    if min(height, width) < MIN_SIDE:
        yield (
            f"the picture is {width}x{height} pixels; expected at least {MIN_SIDE} a side. Use a "
            "larger one."
        )
    yield from _value_problems(photo.image, "picture")
    if photo.landmarks is not None:
        yield from _landmark_problems(photo.landmarks, photo.size)
    if photo.face_mask is not None:
        yield from _value_problems(photo.face_mask, "mask")
    if masked and what == "person":
        yield from _mask_problems(photo.face_mask, "face", _MAKE_FACE_MASKS)
    elif masked:
        yield from _mask_problems(photo.face_mask, "thing", _MAKE_CUT_OUTS)


def _value_problems(values: Tensor, what: str) -> Iterator[str]:
    if not torch.isfinite(values).all():
        yield f"the {what} has NaN or infinite values; load it anew."
        return
    low, high = float(values.min()), float(values.max())
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        cure = "Divide them by 255." if high > 2 else "Scale them to 0..1."
        yield f"the {what}'s values go from {low:.3g} to {high:.3g}; expected 0 to 1. {cure}"


def _landmark_problems(landmarks: Tensor, size: tuple[int, int]) -> Iterator[str]:
    # Pixel centres are at integers, so the picture ends half a pixel beyond the outer ones.
    end = torch.tensor([size[1], size[0]], device=landmarks.device) - 0.5
    eye_left, eye_right, _, mouth_left, mouth_right = landmarks.tolist()
    if not ((landmarks >= -0.5) & (landmarks <= end)).all():
        points = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in landmarks.tolist())
        yield (
            f"the face's landmarks {points} are not all inside the picture of {size[1]}x{size[0]} "
            "pixels; give them in this picture's pixels as x, y, or leave them out."
        )
    elif _mirrored(eye_left, eye_right, mouth_left, mouth_right):
        yield (
            "the face's landmarks are in another order; expected the eye on the left of the "
            "picture, the eye on the right, the nose, the mouth's left and right corner."
        )


def _mirrored(*points: list[float]) -> bool:
    """Whether eyes and mouth corners turn the wrong way round; a rolled head does not."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
    across = (bx - ax + dx - cx, by - ay + dy - cy)
    down = (cx + dx - ax - bx, cy + dy - ay - by)
    return across[0] * down[1] - across[1] * down[0] <= 0


def _mask_problems(mask: Tensor | None, what: str, make: str) -> Iterator[str]:
    """What is wrong with a mask of a face or of a thing; make: how one is made."""
    if mask is None:
        yield f"no mask of the {what}. {make}, or {_UNMASKED}."
    elif is_empty(mask):
        yield f"the mask is empty: it marks no {what}. Paint the {what} white, or {_UNMASKED}."
    elif is_full(mask):
        yield (
            f"the mask is full: it marks the whole picture as {what}. Invert it if the {what} is "
            f"black in it, paint the {what} alone, or {_UNMASKED}."
        )


def _size_warnings(references: ReferenceSet, recipe: Recipe) -> Iterator[str]:
    for photo in references:
        height, width = photo.size
        if min(height, width) * _MAX_UPSCALE < recipe.side:
            yield (
                f"{photo.name}: the picture is {width}x{height} pixels and is enlarged more than "
                f"twice to {recipe.side}, which teaches the model blur; use a larger photo "
                "if you have one."
            )


def _duplicates(references: ReferenceSet) -> Iterator[str]:
    first: dict[bytes, Photo] = {}
    for photo in references:
        same = first.setdefault(tensor_digest(photo.image), photo)
        if same is not photo:
            yield (
                f"{photo.name}: it is the same picture as {same.name} and counts twice; leave one "
                "out."
            )
