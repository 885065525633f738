"""Likeness to references by embeddings, divided by the references' likeness to each other.

The embeddings may be a face embedder's or a style network's; they need no unit length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

LACKING = 0.95
"""A concept is missing where it is no more alike than this share of pictures without it are."""


def floor(without: Tensor) -> float:
    """The likeness at or below which a concept is missing, by that of pictures without it (N,)."""
    return float(without.quantile(LACKING))


def likeness(vectors: Tensor, references: Tensor) -> Tensor:
    """The mean cosine of each of the vectors (N,D) to all references (M,D): (N,) in -1..1."""
    return (F.normalize(vectors.float()) @ F.normalize(references.float()).T).mean(dim=1)


def among(references: Tensor) -> Tensor:
    """The mean cosine of each reference (M,D) to the others: (M,) in -1..1.

    Raises InputError for fewer than two references.
    """
    count = len(references)
    if count < 2:
        raise InputError(f"There is {count} reference; leave-one-out similarity needs two or more.")
    unit = F.normalize(references.float())
    cosines = unit @ unit.T
    return (cosines.sum(dim=1) - cosines.diagonal()) / (count - 1)


def leave_one_out(references: Tensor) -> float:
    """The mean likeness of each reference (M,D) to the others: the ceiling for a generated picture.

    Raises InputError for fewer than two references.
    """
    return float(among(references).mean())


def share(vectors: Tensor, references: Tensor) -> Tensor:
    """Likeness of vectors (N,D) divided by the references' (M,D) leave-one-out similarity: (N,).

    1 is as alike as another picture of the same references, 0 is a stranger. Raises InputError
    where the references are not alike at all, so that there is nothing to be measured against.
    """
    ceiling = leave_one_out(references)
    if ceiling <= 0.05:
        raise InputError(
            f"The references are alike by a cosine of {ceiling:.2f} only, so likeness to them "
            "means nothing. Check that all of them show one person, or one style."
        )
    return likeness(vectors, references) / ceiling


def both(first: Tensor, second: Tensor) -> Tensor:
    """The harmonic mean of two shares, each cut to 0..1: 0 where either is lost."""
    a, b = first.clamp(0, 1), second.clamp(0, 1)
    return torch.where(a + b > 0, 2 * a * b / (a + b).clamp_min(1e-12), 0.0)
