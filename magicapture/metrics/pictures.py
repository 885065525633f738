"""The metrics of pictures of a person in a style, measured against the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from .likeness import both
from .metric import METRICS, Metric
from .shown import Shown, distances


def copied(shown: Shown) -> Tensor:
    """Whether each picture or its mirror image is a training picture, not a composition: (B,)."""
    small, case = shown.small, shown.case
    to_truth = distances(small, case.truth).amin(1, keepdim=True)
    copies = torch.zeros(len(small), dtype=torch.bool)
    for seen in (small, small.flip(-1)):
        distance = distances(seen, case.training)
        copies |= ((distance < to_truth) & (distance < case.warranted)).any(1)
    return copies


for metric in (
    Metric(
        "identity",
        lambda shown: shown.identity,
        "Likeness to the person's photos as a share of their leave-one-out similarity, by a "
        "network that no training has seen: 1 is another photo, 0 a stranger.",
        low=None,
        better="higher",
        place="headline",
    ),
    Metric(
        "style",
        lambda shown: shown.style,
        "The same for the style's portraits, faces left out.",
        low=None,
        better="higher",
        place="headline",
    ),
    Metric(
        "both",
        lambda shown: both(shown.identity, shown.style),
        "The harmonic mean of identity and style, picture by picture.",
        high=1.0,
        better="higher",
        place="headline",
    ),
    Metric(
        "distance",
        lambda shown: shown.to_truth.whole,
        "Mean absolute difference of R, G, B (0..1) at 32 x 32 to the true composition of the "
        "nearest of 74 poses.",
        title="distance to truth",
        high=1.0,
        better="lower",
        place="headline",
    ),
    Metric(
        "face_distance",
        lambda shown: shown.to_truth.face,
        "The distance to truth on the face.",
        high=1.0,
        better="lower",
    ),
    Metric(
        "scene_distance",
        lambda shown: shown.to_truth.scene,
        "The distance to truth off the face.",
        high=1.0,
        better="lower",
    ),
    Metric(
        "identity_missing",
        lambda shown: shown.no_identity,
        "Share of pictures without a face, or no more like the person than 95 % of others are.",
        high=1.0,
        better="lower",
    ),
    Metric(
        "style_missing",
        lambda shown: shown.no_style,
        "Share of pictures no more like the style than 95 % of pictures in other styles.",
        high=1.0,
        better="lower",
    ),
    Metric(
        "collapse",
        lambda shown: shown.no_identity | shown.no_style,
        "Share of pictures that show no more of the person, or of the style, than 95 % of dolls "
        "without it do.",
        high=1.0,
        better="lower",
        place="table",
    ),
    Metric(
        "copies",
        copied,
        "Share of pictures nearer to a training picture, or its mirror image, than to any true "
        "composition, and nearer to it than any true composition comes; of pictures far from "
        "both, as untrained ones are, it says little.",
        high=1.0,
        better="lower",
        place="table",
    ),
    Metric(
        "faces",
        lambda shown: shown.sight.faces,
        "Share of pictures in which a face is found.",
        high=1.0,
        better="higher",
    ),
):
    METRICS.add(metric)
