"""The models of faces that a command was given, or finds."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..data import ReferenceSet
from ..data.faces import with_faces
from ..faces.analyzer import FaceAnalyzer
from ..faces.detect import load_detector
from ..faces.embed import FaceEmbedder, FaceEmbeddingNetwork, load_face_embedder
from ..faces.find import best, best_or_none, places
from ..faces.labelling import FaceParser
from ..faces.models import Role
from ..faces.parse import load_parser
from ..faces.protocols import Detector

logger = logging.getLogger(__name__)


def detector_from(arguments: argparse.Namespace) -> Detector:
    """The detector named, else the best one found; one comes with the pack."""
    return load_detector(arguments.detector or best("detector", places(arguments.models)))


def parser_from(arguments: argparse.Namespace) -> FaceParser | None:
    """The parser named, else the best one found, else None."""
    file = _optional("parser", arguments.parser, arguments)
    return None if file is None else load_parser(file)


def embedder_from(arguments: argparse.Namespace) -> FaceEmbeddingNetwork | None:
    """The face embedder named, else the best one found, else None."""
    file = _optional("embedder", arguments.face_model, arguments)
    return None if file is None else load_face_embedder(file, arguments.face_model_input)


def faces_found(
    photos: ReferenceSet,
    portraits: ReferenceSet,
    arguments: argparse.Namespace,
    embedder: FaceEmbedder | None,
) -> tuple[ReferenceSet, ReferenceSet]:
    """A person's photos and a style's, with what masks and landmarks they lack found by a detector.

    embedder: tells which of several faces is the person's. Raises InputError for a folder of models
    that does not exist, StorageError for a model that cannot be read.
    """
    lacking = any(
        photo.face_mask is None or photo.landmarks is None for photo in (*photos, *portraits)
    )
    if not lacking:
        return photos, portraits
    detector, parser = detector_from(arguments), parser_from(arguments)
    of_person = FaceAnalyzer(detector, parser, embedder)
    return _filled(photos, of_person), _filled(portraits, FaceAnalyzer(detector, parser))


def _filled(references: ReferenceSet, analyzer: FaceAnalyzer) -> ReferenceSet:
    filled, found = with_faces(references, analyzer)
    for name, face in zip(references.names, found, strict=True):
        logger.info("%s: %s", name, face)
    return filled


def _optional(role: Role, named: str | None, arguments: argparse.Namespace) -> Path | None:
    """The file named, else the best one found; None, with a word about it, where there is none."""
    if named:
        return Path(named)
    found, why = best_or_none(role, places(arguments.models))
    if found is None:
        logger.info("%s", why)
    return found
