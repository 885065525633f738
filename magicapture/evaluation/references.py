"""What pictures are measured against: a person's photos, and portraits in a style."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..data import ReferenceSet
from ..data.faces import with_faces
from ..errors import InputError
from ..faces.analyzer import embed_faces
from ..metrics import among
from ..metrics.shown import copy_distance
from ..person import Person
from .models import Models
from .seen import Seen, see


@dataclass(frozen=True, eq=False)
class References:
    """What pictures are measured against; `of` makes it. warnings: what was wrong with them."""

    photos: tuple[Seen, ...]
    portraits: tuple[Seen, ...]
    person: Person | None
    warnings: tuple[str, ...] = ()
    tones: bool = False

    @classmethod
    def of(
        cls,
        photos: ReferenceSet,
        portraits: ReferenceSet | None,
        models: Models,
        *,
        tones: bool = False,
    ) -> References:
        """The references of a person's photos and a style's portraits, if there are any.

        tones: whether skin tones are read, here and later. Raises InputError for photos without a
        face, or not of one person, where there is a face embedder.
        """
        seen = _seen_set(photos, models, models, tones)
        strangers = replace(models, analyzer=replace(models.analyzer, embedder=None))
        looks = () if portraits is None else _seen_set(portraits, strangers, models, tones)
        person = None
        if models.analyzer.embedder is not None:
            known = [one.face for one in seen if one.face is not None]
            if not known:
                raise InputError(
                    f"No face is found in the person's {len(seen)} photos; give photos that show "
                    "it."
                )
            person = Person(torch.stack(known))
        lost = [f"{one.name}: no face is found in this photo of the person." for one in seen
                if not one.faces and one.face is None]  # fmt: skip
        return cls(seen, looks, person, tuple(lost), tones)

    @cached_property
    def style(self) -> Tensor | None:
        """CLIP's embeddings of the portraits without their faces (n,E)."""
        known = [one.faceless for one in self.portraits if one.faceless is not None]
        return torch.stack(known) if known else None

    @cached_property
    def style_own(self) -> float:
        """Their likeness to each other; 1 for a single one."""
        several = self.style is not None and len(self.style) > 1
        return float(among(self.style).mean()) if several else 1.0  # type: ignore[arg-type]

    @cached_property
    def training(self) -> Tensor:
        """All of them, small (N,3,s,s)."""
        return torch.stack([one.small for one in (*self.photos, *self.portraits)])

    @cached_property
    def apart(self) -> float | None:
        """What is nearer to a training picture is a copy; None where there is one alone."""
        return copy_distance(self.training) if len(self.training) > 1 else None

    @cached_property
    def tone(self) -> float | None:
        """The median of the photos' skin tones in degrees."""
        known = [one.tone for one in self.photos if one.tone is not None]
        return statistics.median(known) if known else None


def _seen_set(
    photos: ReferenceSet, choosing: Models, models: Models, tones: bool
) -> tuple[Seen, ...]:
    """Look at references; choosing: with what it is told which face counts."""
    filled, found = with_faces(photos, choosing.analyzer)
    seen, embedder = [], models.analyzer.embedder
    for photo, one in zip(filled, found, strict=True):
        face: tuple[int, Tensor | None] | None = None
        if photo.landmarks is not None:
            vector = None
            if embedder is not None:
                vector = embed_faces(embedder, [photo.image], [photo.landmarks])[0].cpu()
            face = (one.chosen or 0, vector)
        mask = photo.face_mask
        seen.append(
            see(photo.image, photo.name, one.faces, face, models, own_mask=mask, tones=tones)
        )
    return tuple(seen)
