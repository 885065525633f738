"""`magicapture identity`."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..adapters.metadata import restore
from ..data.folder import read_picture
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import load_face_embedder
from ..faces.find import best, places
from ..files import atomic_write
from ..person import Person, measure_identity
from ..weight_files import read_metadata
from .faces import detector_from
from .images import photos_in

logger = logging.getLogger(__name__)


def identity(arguments: argparse.Namespace) -> None:
    """Measure how much of a person pictures show, as a share of what their photos share."""
    photos = photos_in(arguments.folder).images
    pictures = _pictures(arguments.pictures)
    loss = _loss(arguments)
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
        text = json.dumps(report.as_dict(), indent=2) + "\n"
        atomic_write(arguments.json, lambda file: file.write_text(text, "utf-8"))
        logger.info("Wrote %s", arguments.json)


def _loss(arguments: argparse.Namespace) -> Path | str | None:
    """The identity loss's face embedder: its file, or its name as the adapter tells it."""
    if arguments.loss_face_model:
        return Path(arguments.loss_face_model)
    if arguments.adapter:
        facts = restore(read_metadata(arguments.adapter))
        return facts.info.get("face_model") if facts else None
    return None


def _pictures(paths: Sequence[Path]) -> list[Tensor]:
    """The pictures of files and folders, in the order given."""
    images: list[Tensor] = []
    for path in paths:
        images += photos_in(path).images if path.is_dir() else [read_picture(path).image]
    return images
