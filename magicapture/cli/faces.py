"""The models of faces that a command was given, or finds."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..errors import MagiCaptureError
from ..faces.detect import load_detector
from ..faces.embed import FaceEmbeddingNetwork, load_face_embedder
from ..faces.find import best, places
from ..faces.labelling import FaceParser
from ..faces.models import TITLES, Role
from ..faces.parse import load_parser
from ..faces.protocols import Detector

logger = logging.getLogger(__name__)


def detector_from(arguments: argparse.Namespace) -> Detector:
    """The detector named, else the best one found; raises StorageError where there is none."""
    return load_detector(arguments.detector or best("detector", places(arguments.models)))


def parser_from(arguments: argparse.Namespace) -> FaceParser | None:
    """The parser named, else the best one found, else None."""
    file = _optional("parser", arguments.parser, arguments)
    return None if file is None else load_parser(file)


def embedder_from(arguments: argparse.Namespace) -> FaceEmbeddingNetwork | None:
    """The face embedder named, else the best one found, else None."""
    file = _optional("embedder", arguments.face_model, arguments)
    return None if file is None else load_face_embedder(file, arguments.face_model_input)


def _optional(role: Role, named: str | None, arguments: argparse.Namespace) -> Path | None:
    """The file named, else the best one found; None, with a word about it, where there is none."""
    if named:
        return Path(named)
    try:
        return best(role, places(arguments.models))
    except MagiCaptureError as error:
        logger.info("No %s: what it would tell is left out.", TITLES[role])
        logger.debug("%s", error)
        return None
