"""Seeds: which belong to training, development and test, and the random streams they open."""

from __future__ import annotations

from enum import Enum

import numpy as np


class Split(Enum):
    """A half-open range of seeds; ranges never meet, and the gap between them is never used."""

    TRAIN = (0, 1_000_000)
    DEVELOPMENT = (1_000_000, 1_100_000)
    TEST = (2_000_000, 3_000_000)

    @property
    def seeds(self) -> range:
        """All seeds of the split."""
        return range(*self.value)


def split_of(seed: int) -> Split:
    """The split that a seed belongs to; a seed outside every split is a ValueError."""
    for split in Split:
        if seed in split.seeds:
            return split
    ranges = ", ".join(f"{s.name.lower()} {s.value[0]}-{s.value[1] - 1}" for s in Split)
    raise ValueError(f"seed {seed} belongs to no split; use one of: {ranges}")


def require_split(seed: int, split: Split) -> int:
    """The seed itself if it lies in the split, else a ValueError."""
    if split_of(seed) is not split:
        raise ValueError(
            f"expected a {split.name.lower()} seed, got {seed} ({split_of(seed).name})"
        )
    return seed


def stream(kind: str, seed: int) -> np.random.Generator:
    """A random stream that depends on nothing but the kind ("identity", ...) and the seed."""
    split_of(seed)
    return np.random.default_rng([*kind.encode(), seed])
