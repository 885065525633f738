"""Paperdoll: portraits drawn by a program, so that the true composition is always known."""

from .canvas import FACE_LABELS, Label
from .render import SIZE, Doll, render
from .seeds import Split, require_split, split_of
from .traits import (
    Identity,
    Pose,
    Style,
    identity_from_seed,
    pose_from_seed,
    style_from_seed,
)

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
