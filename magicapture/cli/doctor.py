"""`magicapture doctor`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..config import Recipe, Role, help_of
from ..data.faces import with_faces
from ..doctor import contact_sheet, judge_photos
from ..faces.analyzer import FaceAnalyzer
from ..recipes import recipe
from .faces import detector_from, embedder_from, parser_from
from .groups import add_faces, add_json, add_photos
from .images import photos_in, save_image
from .options import option, require_range, require_text
from .outputs import check_json, check_sheet, write_json

logger = logging.getLogger(__name__)

_COMMAND, _SHEET = "magicapture doctor", "contact sheet"


def doctor(arguments: argparse.Namespace) -> None:
    """Check photos before training: faces, sharpness, light, and whether it is one person."""
    require_text("FOLDER", arguments.folder)
    require_range("--resolution", arguments.resolution, 64, 2048)
    check_json(arguments.json, _COMMAND)
    check_sheet(arguments.sheet, Path(arguments.folder), _SHEET)
    references = photos_in(arguments.folder)
    embedder = None if arguments.style else embedder_from(arguments)
    analyzer = FaceAnalyzer(detector_from(arguments), parser_from(arguments), embedder)
    filled, found = with_faces(references, analyzer)
    role: Role = "style" if arguments.style else "subject"
    report = judge_photos(filled, found, role, resolution=arguments.resolution, embedder=embedder)
    for line in str(report).splitlines():
        logger.info("%s", line)
    if arguments.sheet:
        save_image(contact_sheet(filled, found, report), arguments.sheet, _SHEET)
        logger.info("Wrote %s", arguments.sheet)
    if arguments.json:
        write_json(arguments.json, report.to_dict(), _COMMAND)
        logger.info("Wrote %s", arguments.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    add_photos(parser)
    option(
        parser,
        "--resolution",
        int,
        help_of(Recipe, "resolution"),
        default=recipe().side,
    )
    sheet = "Write a contact sheet (.png) with verdicts."
    option(parser, "--sheet", Path, sheet, shown="none", metavar="FILE")
    add_json(parser)
    add_faces(parser.add_argument_group("faces"), parser_model=True, optional=True)
