"""A training job: concepts, photos, recipe and seed, checked before the first step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import torch

from ..config import Recipe, to_dict
from ..data import ReferenceSet, check_references, fingerprint
from ..errors import InputError
from ..faces.align import landmarks_from_mask
from ..recipes import check
from ..tokens import Concept


@dataclass(frozen=True)
class TrainingJob:
    """What to learn, from which photos, and how.

    `subject` is learned from `source`, `style` from `reference`; masks are 1 inside the concept.
    """

    subject: Concept
    source: ReferenceSet
    style: Concept
    reference: ReferenceSet
    recipe: Recipe
    seed: int = 0

    def check(self) -> list[str]:
        """Return warnings; raises InputError for what would spoil the run."""
        if self.subject.name == self.style.name:
            raise InputError(
                f"The subject and the style are both called {self.subject.name!r}; give each "
                "token a name of its own."
            )
        for concept, role in ((self.subject, "subject"), (self.style, "style")):
            if concept.role != role:
                raise InputError(
                    f"The token {concept.name!r} was made as a {concept.role} and is used as a "
                    f"{role}; connect a {role} there."
                )
        return [
            *check(self.recipe),
            *check_references(self.source, self.subject, self.recipe),
            *check_references(self.reference, self.style, self.recipe),
        ]

    def with_landmarks(self) -> TrainingJob:
        """The same job with each missing set of landmarks estimated from the face's mask."""
        return replace(
            self,
            source=_with_landmarks(self.source),
            reference=_with_landmarks(self.reference),
        )

    def fingerprint(self) -> str:
        """A hash of everything that decides the run's course, but for the base model.

        Settings that only save memory do not count: a run that lacked it goes on with them.
        """
        recipe = replace(self.recipe, checkpointing=False)
        if recipe.batching == "in_turn":
            recipe = replace(recipe, batching="together")
        parts = [
            json.dumps(to_dict(recipe), sort_keys=True),
            json.dumps([asdict(self.subject), asdict(self.style), self.seed], sort_keys=True),
            fingerprint(self.source),
            fingerprint(self.reference),
        ]
        return digest(*parts)


def _with_landmarks(references: ReferenceSet) -> ReferenceSet:
    landmarks = []
    for i, known in enumerate(references.landmarks):
        if known is None and (face := references.face(i)) is not None:
            known = landmarks_from_mask(face)
        landmarks.append(known)
    return replace(references, landmarks=tuple(landmarks))


def digest(*parts: str) -> str:
    """One hash of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the seed and on a path of names below it."""
    hashed = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed[:8], "little") >> 1)
