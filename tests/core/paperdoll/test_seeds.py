"""Splits never meet, and a seed decides everything."""

from __future__ import annotations

from itertools import combinations

import pytest

from magicapture.paperdoll import (
    Split,
    identity_from_seed,
    pose_from_seed,
    require_split,
    split_of,
    style_from_seed,
)


def test_splits_never_meet() -> None:
    for a, b in combinations(Split, 2):
        assert a.seeds.stop <= b.seeds.start or b.seeds.stop <= a.seeds.start


def test_splits_are_where_they_are_said_to_be() -> None:
    assert split_of(0) is split_of(999_999) is Split.TRAIN
    assert split_of(1_000_000) is split_of(1_099_999) is Split.DEVELOPMENT
    assert split_of(2_000_000) is Split.TEST


@pytest.mark.parametrize("seed", [-1, 1_100_000, 1_999_999, 3_000_000])
def test_a_seed_between_splits_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="no split"):
        split_of(seed)
    for make in (identity_from_seed, style_from_seed, pose_from_seed):
        with pytest.raises(ValueError, match="no split"):
            make(seed)


def test_training_refuses_held_out_seeds() -> None:
    assert require_split(12, Split.TRAIN) == 12
    with pytest.raises(ValueError, match="expected a train seed"):
        require_split(2_000_000, Split.TRAIN)


def test_seeds_decide_and_differ() -> None:
    for make in (identity_from_seed, style_from_seed, pose_from_seed):
        assert make(42) == make(42)
        assert len({make(seed) for seed in range(200)}) == 200
