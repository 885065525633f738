"""What will be taught, for a look before training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Photo, ReferenceSet
from ..images.sheet import Tile, sheet

SHOWN_IN = "violet"
"""The colour that lies over what is not taught."""

_VIOLET = (0.55, 0.1, 0.9)
_PLAIN = "no photo is near in pose: its own face stays and is not taught"
_LAID_IN = "the person's face is laid in"


def laid_in(label: Photo, portraits: ReferenceSet) -> bool:
    """Whether a label shows the person's face, or is one of the portraits as it was."""
    return not any(label.image is portrait.image for portrait in portraits)


def shown(label: Photo) -> Tensor:
    """A label (3,H,W) with violet over what of it is not taught."""
    if label.taught is None:
        return label.image
    violet = label.image.new_tensor(_VIOLET).view(3, 1, 1)
    return torch.lerp(label.image, violet, 0.6 * (1 - label.taught))


def label_sheet(labels: ReferenceSet, portraits: ReferenceSet, *, side: int = 224) -> Tensor:
    """All labels (3,H,W) on one sheet, each with what is not taught, and its name."""
    return sheet(
        [Tile(shown(label), label.name, _said(label, portraits)) for label in labels], side=side
    )


def report(labels: ReferenceSet, portraits: ReferenceSet) -> str:
    """A line for each label, then what is to know of them all."""
    lines = [f"{label.name}: {_said(label, portraits)}" for label in labels]
    return "\n".join([*lines, _summary(labels, portraits), *labels.warnings])


def _said(label: Photo, portraits: ReferenceSet) -> str:
    if not laid_in(label, portraits):
        return _PLAIN
    share = 1.0 if label.taught is None else _share_of_face(label)
    return f"{_LAID_IN}; {share:.0%} of it is taught"


def _share_of_face(label: Photo) -> float:
    assert label.face_mask is not None and label.taught is not None
    return float((label.face_mask * label.taught).sum() / label.face_mask.sum().clamp_min(1))


def _summary(labels: ReferenceSet, portraits: ReferenceSet) -> str:
    count = sum(laid_in(label, portraits) for label in labels)
    return (
        f"{count} of {len(labels)} labels show the person. What lies under {SHOWN_IN} in the "
        "preview is not taught."
    )
