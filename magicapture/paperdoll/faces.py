"""Paperdoll's own networks where a user's would be: they find, parse and recognise drawn faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..faces.align import FFHQ_TEMPLATE, invert, similarity, transform
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import Normalisation
from ..faces.labelling import FaceParser
from ..faces.parsers.bisenet import BISENET_LABELS
from ..faces.protocols import Face, Part
from .weights import WEIGHTS, load_reader

PAPERDOLL_LABELS = (*BISENET_LABELS, Part.BEARD)
"""The part that each label of paperdoll's parser means."""

_CORNERS = torch.tensor([[108.0, 102.0], [404.0, 102.0], [108.0, 482.0], [404.0, 482.0]])
"""Of a face's box in the aligned 512x512 head: brows to chin, ear to ear."""

_AS_THEY_ARE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # our networks take 0..1


@dataclass(frozen=True, eq=False)
class DollDetector:
    """Finds the one face of a drawn picture, square as they all are; fits `Detector`.

    network: a `FaceFinder`.
    """

    network: nn.Module

    @torch.no_grad()
    def __call__(self, image: Tensor, /) -> tuple[Face, ...]:
        """The face of an image (3,H,W) in 0..1, or none."""
        points, score = self.network(image[None].float().cpu())
        if float(score) <= 0:
            return ()
        corners = transform(invert(similarity(points, FFHQ_TEMPLATE)), _CORNERS[None])[0]
        box = torch.cat([corners.amin(dim=0), corners.amax(dim=0)])
        return (Face(box, points[0], float(score.sigmoid())),)


def doll_detector(folder: Path = WEIGHTS) -> DollDetector:
    """The face finder of a folder of weights; raises StorageError as `load_reader`."""
    return DollDetector(load_reader("finder", folder))


def doll_parser(folder: Path = WEIGHTS) -> FaceParser:
    """The parser, as it sees aligned heads; raises StorageError as `load_reader`."""
    return FaceParser(load_reader("parser", folder), PAPERDOLL_LABELS, _AS_THEY_ARE, side=128)


def doll_analyzer(folder: Path = WEIGHTS) -> FaceAnalyzer:
    """Detector, parser, and the face embedder that no training uses, for scores.

    Raises StorageError as `load_reader`.
    """
    embedder = load_reader("identity_score", folder)
    return FaceAnalyzer(doll_detector(folder), doll_parser(folder), embedder)
