"""`magicapture identity`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import load_face_embedder
from ..faces.find import best, places
from ..person import Person, measure_identity
from .faces import detector_from, loss_from
from .groups import add_faces, add_json, add_loss_model
from .images import photos_in, picture_in
from .options import require_text
from .outputs import check_json, write_json

logger = logging.getLogger(__name__)

_COMMAND = "magicapture identity"


def identity(arguments: argparse.Namespace) -> None:
    """Measure how much of a person pictures show, as a share of what their photos share."""
    require_text("FOLDER", arguments.folder)
    check_json(arguments.json, _COMMAND)
    photos = photos_in(arguments.folder).images
    pictures = _pictures(arguments.pictures)
    loss = loss_from(arguments)
    file = arguments.face_model or best(
        "embedder", places(arguments.models), other_than=None if loss is None else Path(loss)
    )
    embedder = load_face_embedder(file, arguments.face_model_input)
    analyzer = FaceAnalyzer(detector_from(arguments), embedder=embedder)
    report = measure_identity(
        pictures,
        Person.in_photos(photos, analyzer),
        analyzer,
        load_face_embedder(loss, arguments.face_model_input) if isinstance(loss, Path) else loss,
    )
    for line in str(report).splitlines():
        logger.info("%s", line)
    if arguments.json:
        write_json(arguments.json, report.as_dict(), _COMMAND)
        logger.info("Wrote %s", arguments.json)


def _pictures(paths: Sequence[Path]) -> list[Tensor]:
    """The pictures of files and folders, in the order given."""
    images: list[Tensor] = []
    for path in paths:
        images += photos_in(path).images if path.is_dir() else [picture_in(path)]
    return images


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `identity`."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="Photos of the person.")
    add("pictures", metavar="PICTURES", nargs="+", type=Path, help="Pictures, and folders of them.")
    add_loss_model(parser)
    add_json(parser)
    add_faces(parser.add_argument_group("faces"))
