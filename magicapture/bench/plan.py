"""What is to be trained and drawn: each person in a style, by each recipe, with each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import Checked, Recipe, setting, to_dict
from ..data import Learnable, fingerprint
from ..digests import digest
from ..errors import InputError
from ..sampling import SamplingSettings
from ..tokens import Concept
from ..training import TrainingJob
from .sets import FEWEST, Shots


@dataclass(frozen=True)
class BenchSettings(Checked):
    """How much is trained and drawn."""

    people: int = setting(6, "How many people, the first by name.", low=1, high=1000)
    styles_each: int = setting(
        1, "Styles that each person is trained with; the styles take turns.", low=1, high=100
    )
    seeds: int = setting(1, "Trainings of each person, style and recipe.", low=1, high=100)
    photos: int = setting(
        5,
        "Photos of a person, and portraits of a style, that are trained on; those after them are "
        "held out.",
        low=FEWEST,
        high=20,
    )
    pictures: int = setting(8, "Pictures drawn after each training.", low=1, high=1000)
    edit_pictures: int = setting(
        4, "Pictures drawn of each edit; 0 leaves edits out.", low=0, high=1000
    )
    edits: tuple[str, ...] = setting(
        ("with round glasses", "on a plain red background"),
        "Words put behind the prompt, with a guidance of their own.",
    )
    class_word: str = setting("person", "The ordinary noun for all of the people.")


@dataclass(frozen=True)
class Trial:
    """One training: the person's and the style's place among theirs, the recipe's name, a seed."""

    person: int
    style: int
    recipe: str
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.recipe}, person {self.person + 1} in style {self.style + 1}, seed {self.seed}"
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is decided before a model computes anything.

    recipes: by name, one or more; the others are compared with the first. sampling: of every
    picture. Raises InputError for what would spoil a training.
    """

    people: Sequence[Shots]
    styles: Sequence[Shots]
    recipes: Mapping[str, Recipe]
    settings: BenchSettings
    sampling: SamplingSettings

    def __post_init__(self) -> None:
        for name in self.recipes:
            for person, style in self.pairs():
                try:
                    self.job(Trial(person, style, name, 0)).check()
                except InputError as error:
                    who = f"{self.people[person].name} in the style {self.styles[style].name}"
                    raise InputError(f"{who}, recipe {name}: {error}") from error

    def pairs(self) -> list[tuple[int, int]]:
        """Each person with the styles whose turn it is."""
        each = min(self.settings.styles_each, len(self.styles))
        return [
            (person, (person + turn) % len(self.styles))
            for person in range(len(self.people))
            for turn in range(each)
        ]

    def trials(self) -> list[Trial]:
        """All trainings, in an order in which an unfinished bench has every recipe alike often."""
        return [
            Trial(person, style, recipe, seed)
            for seed in range(self.settings.seeds)
            for person, style in self.pairs()
            for recipe in self.recipes
        ]

    def job(self, trial: Trial) -> TrainingJob:
        """The training of a trial."""
        word = self.settings.class_word
        return TrainingJob(
            Learnable(Concept("bench-person", "subject", word), self.people[trial.person].used),
            Learnable(Concept("bench-style", "style", word), self.styles[trial.style].used),
            self.recipes[trial.recipe],
            trial.seed,
        )

    def version(self, trial: Trial) -> str:
        """A hash of all that decides a trial's scores, but for what all trials share."""
        shots = self.people[trial.person], self.styles[trial.style]
        held = [fingerprint(one.held) for one in shots]
        return digest(self.job(trial).fingerprint(), held)[:24]

    def shared(self) -> dict[str, object]:
        """What all trials share, as JSON-ready data."""
        settings = to_dict(self.settings)
        return {
            **{name: settings[name] for name in ("photos", "pictures", "edit_pictures", "edits")},
            "class_word": self.settings.class_word,
            "sampling": to_dict(self.sampling),
        }
