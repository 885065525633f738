"""The look at a concept's photos before step 1: what cannot work stops here, with advice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import Recipe
from ..errors import InputError
from ..tokens import Concept
from .masks import fit, is_empty, is_full
from .references import ReferenceSet, tensor_digest

MIN_SIDE = 64
"""Shortest side of a usable photo, in pixels."""

_MAX_UPSCALE = 2.0
_OVERSHOOT = 0.01  # beyond 0..1: what a sharp resize leaves, clamped later
_UNMASKED = "turn masks off (masked: off, attention weight: 0)"


def check_references(references: ReferenceSet, concept: Concept, recipe: Recipe) -> tuple[str, ...]:
    """Return what the user should know, those from loading first.

    Raises InputError that lists every photo which cannot be used, what was expected, what came
    and what to do.
    """
    if references.role != concept.role:
        raise InputError(
            f"The photos for {concept.token} were given as those of a {references.role}, but it "
            f"is a {concept.role}; give them as a {concept.role}'s."
        )
    count = len(references)
    if count < max(1, recipe.min_images):
        raise InputError(
            f"There {'is' if count == 1 else 'are'} {count or 'no'} photo{'s' * (count != 1)} for "
            f"{concept.token}; expected {recipe.min_images} or more (4 to 6 work well). Add photos."
        )
    needs_masks = recipe.masked or recipe.uses("attention")
    problems: dict[str, list[str]] = {}
    for i, name in enumerate(references.names):
        for text in _problems(references, i, needs_masks):
            problems.setdefault(text, []).append(name)
    if problems:
        lines = [f"- {', '.join(names)}: {text}" for text, names in problems.items()]
        raise InputError("\n".join([f"The photos for {concept.token} cannot be used:", *lines]))
    return (
        *references.warnings,
        *_size_warnings(references, recipe),
        *_duplicates(references),
    )


def _problems(references: ReferenceSet, index: int, needs_masks: bool) -> Iterator[str]:
    image, mask = references.images[index], references.masks[index]
    height, width = _size(image)
    if min(height, width) < MIN_SIDE:
        yield (
            f"the picture is {width}x{height} pixels; expected at least {MIN_SIDE} a side. Use a "
            "larger one."
        )
    yield from _value_problems(image, "picture")
    if (landmarks := references.landmarks[index]) is not None:
        yield from _landmark_problems(landmarks, (height, width))
    if mask is not None:
        yield from _mask_problems(mask, (height, width))
    if needs_masks:
        yield from _face_problems(references.face(index))


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


def _mask_problems(mask: Tensor, size: tuple[int, int]) -> Iterator[str]:
    yield from _value_problems(mask, "mask")
    try:
        fit(mask, size)
    except InputError as error:
        yield f"{error}."


def _face_problems(face: Tensor | None) -> Iterator[str]:
    if face is None:
        yield f"no mask of the face. Give one, or {_UNMASKED}."
    elif is_empty(face):
        yield f"the mask is empty: it marks no face. Paint the face white, or {_UNMASKED}."
    elif is_full(face):
        yield (
            "the mask is full: it marks the whole picture as face. Invert it if the face is black "
            f"in it, paint the face alone, or {_UNMASKED}."
        )


def _size_warnings(references: ReferenceSet, recipe: Recipe) -> Iterator[str]:
    for name, image, mask in zip(
        references.names, references.images, references.masks, strict=True
    ):
        height, width = _size(image)
        if min(height, width) * _MAX_UPSCALE < recipe.resolution:
            yield (
                f"{name}: the picture is {width}x{height} pixels and is enlarged more than twice "
                f"to {recipe.resolution}, which teaches blur; use a larger one if there is."
            )
        if mask is not None and _size(mask) != (height, width):
            yield (
                f"{name}: the mask is {mask.shape[-1]}x{mask.shape[-2]} pixels and the picture "
                f"{width}x{height}; the mask is resized."
            )


def _duplicates(references: ReferenceSet) -> Iterator[str]:
    first: dict[bytes, int] = {}
    for i, (name, image) in enumerate(zip(references.names, references.images, strict=True)):
        same = first.setdefault(tensor_digest(image), i)
        if same != i:
            yield (
                f"{name}: it is the same picture as {references.names[same]} and counts twice; "
                "leave one out."
            )


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]
