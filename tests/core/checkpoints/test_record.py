"""The rule: which step is marked, when a run stops, which steps are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magicapture.checkpoints import KeepSettings, Record, best_of
from magicapture.checkpoints.record import stops
from magicapture.config import Phase, Recipe
from magicapture.errors import InputError


def record(step: int, both: list[float], copies: list[float] | None = None) -> Record:
    pictures = {"both": both, "identity": [1 - v for v in both], "copies": copies or [0.0] * 2}
    return Record(step, pictures, {"leakage": 0.25})


def test_the_best_has_the_highest_mean_and_of_equals_it_is_the_latest() -> None:
    some = [record(10, [0.2, 0.6]), record(20, [0.5, 0.5]), record(30, [0.9, 0.1])]
    assert best_of(some, "both").step == 30
    assert best_of(some[::-1], "both").step == 30
    assert best_of(some[:1] + some[2:], "identity").step == 10
    assert best_of(some, "last").step == 30
    assert best_of(some[::-1], "last").step == 30


def test_a_copy_counts_nothing() -> None:
    copied, plain = record(10, [0.9, 0.9], [1.0, 0.0]), record(20, [0.5, 0.5])
    assert copied.worth("both") == pytest.approx(0.45)
    assert best_of([copied, plain], "both") is plain
    assert copied.scores == {"both": 0.9, "identity": 0.1, "leakage": 0.25, "copies": 0.5}


def test_a_choice_that_is_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="'style', which is not measured"):
        best_of([record(10, [0.5, 0.5])], "style")
    with pytest.raises(InputError, match="No checkpoint is kept yet"):
        best_of([], "last")


def test_a_run_stops_after_two_worse_ones_in_a_row() -> None:
    values = [0.5, 0.6, 0.55, 0.6, 0.59, 0.58, 0.7]
    every = [record(i, [v, v]) for i, v in enumerate(values)]
    assert [n for n in range(8) if stops(every[:n], "both")] == [6]
    assert not any(stops(every[:n], "last") for n in range(8))


def test_the_steps_that_are_kept() -> None:
    recipe = Recipe(phases=(Phase("a", 100), Phase("b", 50), Phase("c", 0)))
    assert KeepSettings(keep=5).steps(recipe) == [110, 120, 130, 140, 150]
    assert KeepSettings(keep=3).steps(recipe) == [117, 133, 150]
    assert KeepSettings(keep=1).steps(recipe) == [150]
    assert KeepSettings(keep_every=60).steps(recipe) == [60, 120, 150]
    assert KeepSettings(keep_every=75).steps(recipe) == [75, 150]
    short = replace(recipe, phases=(Phase("a", 5), Phase("b", 2)))
    assert KeepSettings(keep=5).steps(short) == [6, 7]
