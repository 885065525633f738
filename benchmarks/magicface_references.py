"""A paperdoll pair as MagicFace gets it: a prompt in words, one photo, and one portrait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from magicapture.magicface import Reference
from magicapture.paperdoll import Doll, Label, Pose
from magicapture.paperdoll.captions import caption
from magicapture.paperdoll.pairs import Pair

GUIDANCE, WEIGHT = 4.0, 2.0
"""Guidance scale, and weight of the references, in all measurements of MagicFace on dolls."""


def prompt_of(pair: Pair) -> str:
    """The style in words, and nothing about the person."""
    opening, *clauses = caption(pair.identity, pair.style, Pose()).split(", ")
    words = ("hair", "wearing", "background", "bald")
    return ", ".join([opening, *(c for c in clauses if any(word in c for word in words))])


def references(pair: Pair, count: int, weight: float) -> list[Reference]:
    """The first `count` of face, clothes and background."""
    photo, portrait = pair.source[0], pair.reference[0]
    face = Reference(
        torch.from_numpy(photo.image),
        torch.from_numpy(photo.mask),
        ("person",),
        "a photo of a person",
        weight,
    )
    described = caption(pair.identity, pair.style, Pose()).split(", ")[0]
    around = [
        Reference(
            torch.from_numpy(portrait.image), _part(portrait, label), (word,), described, weight
        )
        for label, word in ((Label.CLOTHES, pair.style.clothes), (Label.BACKGROUND, "background"))
    ]
    return [face, *around][:count]


def _part(doll: Doll, label: Label) -> Tensor:
    return torch.from_numpy((doll.labels == label).astype(np.float32))[None]
