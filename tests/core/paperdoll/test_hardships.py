"""Hard photos: each hardship does what it says, and nothing else of a pair changes."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch

from magicapture.errors import InputError
from magicapture.images import luma
from magicapture.metrics import likeness
from magicapture.paperdoll import Doll, Label, Split
from magicapture.paperdoll.align import crops
from magicapture.paperdoll.hardships import HARDSHIPS, hardships_of
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.pairs import Pair, make_pair, masks, pictures
from magicapture.paperdoll.weights import loss_embedder

FIRST = Split.DEVELOPMENT.seeds.start


@cache
def pair(hard: str | None = None) -> Pair:
    return make_pair(FIRST + 7, FIRST + 40, poses=2, hard=hard)


def same(some: tuple[Doll, ...], others: tuple[Doll, ...]) -> bool:
    return len(some) == len(others) and all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for a, b in zip(some, others, strict=True)
        for field in fields(Doll)
    )
