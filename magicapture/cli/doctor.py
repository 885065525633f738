"""`magicapture doctor`."""

from __future__ import annotations

import argparse
import logging

from ..config import Role
from ..data.faces import with_faces
from ..doctor import check, contact_sheet
from ..faces.analyzer import FaceAnalyzer
from ..files import atomic_write
from .faces import detector_from, embedder_from, parser_from
from .images import photos_in, save_image

logger = logging.getLogger(__name__)


def doctor(arguments: argparse.Namespace) -> None:
    """Check photos before training: faces, sharpness, light, and whether it is one person."""
    references = photos_in(arguments.folder)
    embedder = None if arguments.style else embedder_from(arguments)
    analyzer = FaceAnalyzer(detector_from(arguments), parser_from(arguments), embedder)
    filled, found = with_faces(references, analyzer)
    role: Role = "style" if arguments.style else "subject"
    report = check(filled, found, role, resolution=arguments.resolution, embedder=embedder)
    for line in str(report).splitlines():
        logger.info("%s", line)
    if arguments.sheet:
        save_image(contact_sheet(filled, found, report), arguments.sheet, "contact sheet")
        logger.info("Wrote %s", arguments.sheet)
    if arguments.json:
        text = report.to_json() + "\n"
        atomic_write(arguments.json, lambda file: file.write_text(text, "utf-8"))
        logger.info("Wrote %s", arguments.json)
