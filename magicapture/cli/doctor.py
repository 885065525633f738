"""`magicapture doctor`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..config import Role
from ..data import load_folder
from ..data.faces import with_faces
from ..doctor import check, contact_sheet
from ..errors import MagiCaptureError
from ..faces.analyzer import FaceAnalyzer
from ..faces.detect import load_detector
from ..faces.embed import Recogniser, load_recogniser
from ..faces.find import best, places
from ..faces.models import Role as FaceRole
from ..faces.parse import load_parser
from ..files import atomic_write
from .images import save_image

logger = logging.getLogger(__name__)


def doctor(arguments: argparse.Namespace) -> None:
    """Check photos before training: faces, sharpness, light, and whether it is one person."""
    references = load_folder(arguments.folder, "subject")
    detector = load_detector(arguments.detector or best("detector", places(arguments.models)))
    recogniser = None if arguments.style else _recogniser(arguments)
    parser = _optional("parser", arguments.parser, arguments.models)
    analyzer = FaceAnalyzer(detector, None if parser is None else load_parser(parser), recogniser)
    filled, found = with_faces(references, analyzer)
    role: Role = "style" if arguments.style else "subject"
    report = check(filled, found, role, resolution=arguments.resolution, recogniser=recogniser)
    for line in str(report).splitlines():
        logger.info("%s", line)
    if arguments.sheet:
        save_image(contact_sheet(filled, found, report), arguments.sheet, "contact sheet")
        logger.info("Wrote %s", arguments.sheet)
    if arguments.json:
        text = report.to_json() + "\n"
        atomic_write(arguments.json, lambda file: file.write_text(text, "utf-8"))
        logger.info("Wrote %s", arguments.json)


def _recogniser(arguments: argparse.Namespace) -> Recogniser | None:
    file = _optional("recogniser", arguments.recogniser, arguments.models)
    return None if file is None else load_recogniser(file, arguments.recogniser_input)


def _optional(role: FaceRole, named: str | None, models: str | None) -> Path | None:
    """The file named, else the best one found; None, with a word about it, where there is none."""
    if named:
        return Path(named)
    try:
        return best(role, places(models))
    except MagiCaptureError as error:
        logger.info("No face %s: what it would tell is left out.", role)
        logger.debug("%s", error)
        return None
