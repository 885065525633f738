"""A training job: what to learn from which photos, by which recipe, checked before step 1."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..config import Recipe
from ..data import Learnable, check_photos, fingerprint
from ..data.checks import check_apart
from ..data.given import with_estimated_landmarks
from ..errors import InputError
from ..families import FAMILIES, FamilyName
from ..recipes import check, fitted, spelled
from ..tokens import Concept


@dataclass(frozen=True)
class TrainingJob:
    """A person and a style to learn, how, and from which random numbers."""

    subject: Learnable
    style: Learnable
    recipe: Recipe
    seed: int = 0

    @property
    def learnables(self) -> tuple[Learnable, Learnable]:
        """The person, then the style."""
        return self.subject, self.style

    @property
    def concepts(self) -> tuple[Concept, Concept]:
        """The person's, then the style's."""
        return self.subject.concept, self.style.concept

    def check(self) -> list[str]:
        """Return warnings; raises InputError for what would spoil the run."""
        subject, style = self.concepts
        if subject.name == style.name:
            raise InputError(
                f"The subject and the style are both called {subject.name!r}; give each "
                "token a name of its own."
            )
        _check_phrases(subject, style)
        for concept, role in ((subject, "subject"), (style, "style")):
            if concept.role != role:
                raise InputError(
                    f"The token {concept.name!r} was made as a {concept.role} and is used as a "
                    f"{role}; connect a {role} there."
                )
        for learnable, other in ((self.subject, style), (self.style, subject)):
            _check_captions(learnable, other)
        return [
            *check(spelled(self.recipe, self.concepts), vectors=subject.vectors > 0),
            *_idle_phrases(subject, style),
            *_class_word_advice(subject, self.recipe),
            *check_photos(self.subject, self.recipe),
            *check_photos(self.style, self.recipe),
            *check_apart(self.subject, self.style),
        ]

    def fitted(self, family: FamilyName) -> TrainingJob:
        """The job with what its recipe leaves to the base model, and to concepts without vectors.

        On a family that learns no vectors no concept has any. Raises InputError where the recipe
        trains nothing that could carry a concept without.
        """
        learnables = self.learnables
        if not FAMILIES[family].learns:
            learnables = _without_vectors(self.subject), _without_vectors(self.style)
        recipe = spelled(fitted(self.recipe, family), [of.concept for of in learnables])
        return TrainingJob(*learnables, recipe, self.seed)

    def with_landmarks(self) -> TrainingJob:
        """The same job with missing landmarks estimated from the faces' masks; things have none."""
        if self.recipe.subject_is == "thing":
            return self
        subject, style = (
            replace(learnable, photos=with_estimated_landmarks(learnable.photos))
            for learnable in self.learnables
        )
        return replace(self, subject=subject, style=style)

    def fingerprint(self) -> str:
        """A hash of everything that decides the run's course, but for the base model.

        Settings that only save memory do not count: a run that lacked it goes on with them.
        """
        recipe = replace(self.recipe, checkpointing=False)
        if recipe.batching == "in_turn":
            recipe = replace(recipe, batching="together")
        return digest(
            json.dumps(recipe.settings(), sort_keys=True),
            json.dumps(
                [*(concept.facts() for concept in self.concepts), self.seed], sort_keys=True
            ),
            *(fingerprint(learnable.photos) for learnable in self.learnables),
        )


def _without_vectors(learnable: Learnable) -> Learnable:
    return replace(learnable, concept=replace(learnable.concept, vectors=0))


def _check_captions(learnable: Learnable, other: Concept) -> None:
    """Raise for a caption that names the other concept, which would be learned from this photo."""
    for photo in learnable.photos:
        if photo.caption and other.is_named_in(photo.caption):
            raise InputError(
                f"{photo.name}: its caption names {_called(other)}, which is learned from other "
                f"photos than {learnable.concept.token}; take it out of the caption."
            )


def _check_phrases(subject: Concept, style: Concept) -> None:
    """Raise where two concepts without vectors would be one and the same words."""
    words = [of.spelled.words.casefold() for of in (subject, style) if not of.vectors]
    if len(words) > len(set(words)):
        raise InputError(
            f"The subject and the style have the same phrase, {subject.spelled.words!r}; give each "
            "words of its own."
        )


def _idle_phrases(*concepts: Concept) -> Iterator[str]:
    for concept in concepts:
        if concept.phrase and concept.vectors:
            yield (
                f"The phrase {concept.phrase!r} of {concept.token} stands where a text encoder has "
                "no vectors for it alone; set its vectors to 0 for it to be used."
            )


def _class_word_advice(subject: Concept, recipe: Recipe) -> Iterator[str]:
    if recipe.subject_is == "thing" and subject.class_word == "person":
        yield (
            f"The class word of {subject.token} is 'person', and the recipe learns a thing. Give "
            "the ordinary noun for it, such as dog or bag (--class-word; class_word in ComfyUI)."
        )


def _called(concept: Concept) -> str:
    return concept.token if concept.vectors else repr(concept.spelled.words)


def digest(*parts: str) -> str:
    """One hash of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the seed and on a path of names below it."""
    hashed = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed[:8], "little") >> 1)
