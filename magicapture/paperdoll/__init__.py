"""Paperdoll: portraits drawn by a program, so that the true composition is always known."""

from .drawing.canvas import FACE_LABELS, Label
from .drawing.render import SIZE, Doll, render
from .drawing.traits import (
    Identity,
    Pose,
    Style,
    identity_from_seed,
    pose_from_seed,
    style_from_seed,
)
from .seeds import Split, require_split, split_of

__all__ = [
    "FACE_LABELS",
    "SIZE",
    "Doll",
    "Identity",
    "Label",
    "Pose",
    "Split",
    "Style",
    "identity_from_seed",
    "pose_from_seed",
    "render",
    "require_split",
    "split_of",
    "style_from_seed",
]
