"""The concepts to draw: a picture of each, where it is in the picture, its words in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..tokens import places

Ids = Sequence[Hashable]
"""A text in the words of a text encoder, without start and end; learned vectors stand for
themselves."""


@dataclass(frozen=True, eq=False)
class Reference:
    """One concept, by one picture of it.

    image: (3,H,W) RGB in 0..1. mask: (1,h,w) in 0..1 of the same shape of picture, 1 = the concept;
    None takes the whole picture. words: of the prompt, any of which draws the concept; each may
    be several words long. prompt: a short one for this picture alone. weight: added to the
    attention's logits, 2 to 4 as a rule; minus infinity turns the reference off.
    """

    image: Tensor
    mask: Tensor | None
    words: tuple[str, ...]
    prompt: str
    weight: float = 3.0

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or len(self.image) != 3:
            raise InputError(
                f"A reference picture came as {tuple(self.image.shape)}; expected (3,H,W)."
            )
        if self.mask is not None and (self.mask.ndim != 3 or len(self.mask) != 1):
            raise InputError(
                f"A reference's mask came as {tuple(self.mask.shape)}; expected (1,H,W)."
            )
        if not any(word.strip() for word in self.words):
            raise InputError(
                "A reference has no words; give those of the prompt that draw it, such as 'man'."
            )

    @property
    def name(self) -> str:
        """What messages call it: its first word."""
        return self.words[0].strip()


def exclusive_masks(references: Sequence[Reference]) -> list[Tensor]:
    """The masks (1,H,W) at their pictures' sizes; where two of one picture overlap, the smaller
    one keeps the place, so that a person's mask does not bring along the hat of another concept.

    Raises InputError for a mask of which nothing is left.
    """
    masks = [_full_mask(reference) for reference in references]
    areas = [float(mask.mean()) for mask in masks]
    kept = []
    for i, reference in enumerate(references):
        mask = masks[i]
        for j, other in enumerate(references):
            smaller = (areas[j], j) < (areas[i], i)
            if j != i and smaller and _same(reference.image, other.image):
                mask = torch.minimum(mask, 1 - masks[j])
        if areas[i] > 0 and not bool(mask.any()):
            raise InputError(
                f"Nothing is left of the reference {reference.name!r}: the masks of other "
                "references to the same picture cover all of its own. Give each a mask of its own."
            )
        kept.append(mask)
    return kept


def square(picture: Tensor, side: int, *, mirrored: bool) -> Tensor:
    """A picture or mask (C,H,W) on a square of `side` pixels, in the middle and whole.

    What is added beside it is its mirror image, or zeros.
    """
    height, width = picture.shape[-2:]
    long = max(height, width)
    left, top = (long - width) // 2, (long - height) // 2
    padding = (left, long - width - left, top, long - height - top)
    fits = max(padding[:2]) < width and max(padding[2:]) < height
    mode = ("reflect" if fits else "replicate") if mirrored else "constant"
    padded = F.pad(picture[None], padding, mode=mode)
    sized = F.interpolate(padded, (side, side), mode="bilinear", antialias=True)
    return sized[0].clamp(0, 1)


def concept_columns(
    references: Sequence[Reference], prompt: Ids, ids_of: Callable[[str], Ids], length: int
) -> list[list[int]]:
    """The columns of the context that each concept's words take up in the prompt.

    Every occurrence counts. prompt: the ids behind the start, which is column 0. ids_of: a word
    as ids. length: of the context. Raises InputError for a word that the prompt lacks, that comes
    too late for the text encoder, or that belongs to two concepts.
    """
    owners: dict[int, str] = {}
    columns = []
    for reference in references:
        own: set[int] = set()
        for word in filter(None, (word.strip() for word in reference.words)):
            found = places(prompt, ids_of(word))
            if not found:
                raise InputError(
                    f"The prompt is without {word!r}, the word of a reference; write it into the "
                    "prompt, or give the reference a word that is there."
                )
            if max(found) + 1 >= length - 1:  # the last column is the end
                raise InputError(
                    f"The word {word!r} comes after the {length - 2} tokens that the text encoder "
                    "reads; move it forward."
                )
            own.update(place + 1 for place in found)
        shared = next((owners[column] for column in own if column in owners), None)
        if shared is not None:
            raise InputError(
                f"The references {shared!r} and {reference.name!r} have a word in common; give "
                "each concept words of its own."
            )
        owners.update(dict.fromkeys(own, reference.name))
        columns.append(sorted(own))
    return columns


def _full_mask(reference: Reference) -> Tensor:
    size = reference.image.shape[-2:]
    if reference.mask is None:
        return torch.ones(1, *size)
    return F.interpolate(reference.mask[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
