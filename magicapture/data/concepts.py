"""A concept together with the photos that it is learned from."""

from __future__ import annotations

from dataclasses import dataclass

from ..tokens import Concept
from .photos import ReferenceSet


@dataclass(frozen=True, eq=False)
class Learnable:
    """One thing to learn: its token, and the photos that show it."""

    concept: Concept
    photos: ReferenceSet
