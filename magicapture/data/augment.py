"""Random variants of a photo: crop, mirror, light; mask and landmarks always move with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..config import Recipe
from ..faces.align import MIRRORED
from ..images import adjust_brightness, adjust_contrast, resize
from .photos import Photo

FACE_KEPT = 0.9
"""Least share of the face's mask that a crop keeps."""


@dataclass(frozen=True)
class Variant:
    """One variant of a photo, S pixels a side.

    image (3,S,S) in 0..1; face_mask and taught (1,S,S) in 0..1 or None; landmarks (5,2) in pixels
    or None.
    """

    image: Tensor
    face_mask: Tensor | None
    landmarks: Tensor | None
    taught: Tensor | None = None


@dataclass(frozen=True)
class Span:
    """Pixels start..end (end left out) along one side of a picture."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def generator_for(seed: int, picture: int, variant: int) -> Generator:
    """The generator of one variant of one picture, the same whatever was drawn before."""
    digest = hashlib.sha256(f"{seed} {picture} {variant}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def variant(photo: Photo, recipe: Recipe, generator: Generator) -> Variant:
    """A random variant of a photo, its masks and landmarks.

    A square whose side is the photo's short side, or down to 1 - recipe.zoom of it, is cut out
    and brought to recipe.side S; then mirrored and changed in light at random. The cut
    keeps FACE_KEPT of the face and all landmarks, unless the face is larger than the square.
    Without zoom it is the central square, moved no further than the face needs.
    """
    image, face, landmarks = photo.image, photo.face_mask, photo.landmarks
    # A fixed count of numbers, so that no setting changes the others' draws.
    zoom, x, y, flip, brightness, contrast = torch.rand(6, generator=generator).tolist()

    rows, columns = _crop(photo.size, face, landmarks, recipe.zoom, (zoom, y, x))
    # One resize for all, so that a mask's edge stays on the image's.
    masks = [mask for mask in (face, photo.taught) if mask is not None]
    stack = torch.cat([image, *(mask.to(image) for mask in masks)])
    cut = stack[:, rows.start : rows.end, columns.start : columns.end]
    side = recipe.side
    pixels = resize(cut, (side, side)).clamp(0, 1)
    points = None
    if landmarks is not None:
        origin = landmarks.new_tensor([columns.start, rows.start])
        points = (landmarks - origin + 0.5) * (side / rows.length) - 0.5
    if recipe.flip and flip < 0.5:
        pixels = pixels.flip(-1)
        if points is not None:
            points = torch.stack([side - 1 - points[MIRRORED, 0], points[MIRRORED, 1]], dim=1)
    lit = _lit(pixels[:3], recipe.jitter, brightness, contrast)
    return Variant(
        lit,
        None if face is None else pixels[3:4],
        points,
        None if photo.taught is None else pixels[-1:],
    )


def central(photo: Photo, side: int) -> Photo:
    """A photo as training sees it without chance: its square, `side` pixels, unchanged else."""
    plain = Recipe(resolution=side, flip=False, jitter=0.0, zoom=0.0)
    seen = variant(photo, plain, Generator().manual_seed(0))
    return Photo(seen.image, seen.face_mask, seen.landmarks, name=photo.name)


def _lit(image: Tensor, jitter: float, brightness: float, contrast: float) -> Tensor:
    """Brightness and contrast times a factor in 1 - jitter..1 + jitter, from numbers in 0..1."""
    if not jitter:
        return image
    image = adjust_brightness(image, 1 + jitter * (2 * brightness - 1))
    return adjust_contrast(image, 1 + jitter * (2 * contrast - 1))


def _crop(
    size: tuple[int, int],
    face: Tensor | None,
    landmarks: Tensor | None,
    zoom: float,
    chance: tuple[float, float, float],
) -> tuple[Span, Span]:
    """The square to cut out of a picture, as rows and columns.

    First the largest square, as central as the face allows; then a smaller one within it that
    holds the face as well. `chance` are numbers in 0..1 for its side, its row, its column.
    """
    short = min(size)
    cores = [_core(axis, size[axis], face, landmarks) for axis in (0, 1)]
    least = max([round((1 - zoom) * short), 1, *(c.length for c in cores if c)])
    side = short - int(chance[0] * max(0, short - least + 1))
    spans = []
    for axis in (0, 1):
        core = cores[axis]
        base = _central(size[axis], short, core)
        low, high = base, base + short - side
        if core and core.length <= short:
            low, high = max(low, core.end - side), min(high, core.start)
        start = low + int(chance[1 + axis] * (high - low + 1))
        spans.append(Span(start, start + side))
    return spans[0], spans[1]


def _central(length: int, side: int, core: Span | None) -> int:
    """Where a span of `side` starts to be as central as its holding the core allows."""
    start = (length - side) // 2
    if core and core.length > side:
        start = (core.start + core.end - side) // 2
    elif core:
        start = min(max(start, core.end - side), core.start)
    return min(max(start, 0), length - side)


def _core(axis: int, length: int, face: Tensor | None, landmarks: Tensor | None) -> Span | None:
    """The rows (axis 0) or columns (1) that a crop must hold; both together keep FACE_KEPT."""
    spans = []
    if face is not None:
        sums = face[0].double().sum(dim=1 - axis).cumsum(0)
        if (total := float(sums[-1])) > 0:
            cut = total * (1 - FACE_KEPT) / 4  # from each of the four sides
            start = int((sums > cut).nonzero()[0])
            spans.append(Span(start, int((sums >= total - cut).nonzero()[0]) + 1))
    if landmarks is not None:
        along = landmarks[:, 1 - axis].round().clamp(0, length - 1)
        spans.append(Span(int(along.min()), int(along.max()) + 1))
    if not spans:
        return None
    return Span(min(s.start for s in spans), max(s.end for s in spans))
