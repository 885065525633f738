"""`magicapture masks`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..backups import write_all
from ..data import Photo
from ..data.companions import LANDMARKS, MASK, Found, found_in, place_beside
from ..data.faces import FoundFace, with_faces
from ..data.writing import Write, landmarks_writer, mask_writer
from ..doctor import contact_sheet
from ..errors import InputError
from ..faces.analyzer import FaceAnalyzer
from ..faces.masks import MaskSettings
from ..files import check_writable
from ..images.reading import open_picture
from .cutout import cut_out_masks
from .faces import detector_from, embedder_from, parser_from, tell_origins
from .groups import add_faces, add_photos
from .images import photos_in, save_image
from .options import option, require_text, setting_option, settings_from
from .outputs import check_sheet

logger = logging.getLogger(__name__)

_SHEET = "contact sheet of masks"


def masks(arguments: argparse.Namespace) -> None:
    """Write the faces' masks and landmarks beside the photos, or things', for editing."""
    require_text("FOLDER", arguments.folder)
    settings = settings_from(MaskSettings, arguments, ("parts", "grow", "feather"))
    check_sheet(arguments.sheet, Path(arguments.folder), _SHEET)
    names, photos = found_in(arguments.folder), photos_in(arguments.folder)
    check_writable(names.folder)
    if arguments.overwrite:
        bare = tuple(replace(photo, face_mask=None, landmarks=None) for photo in photos)
        photos = replace(photos, photos=bare)
    if arguments.cut_out:
        cut_out_masks(arguments, names, photos)
        return
    embedder = None if arguments.style else embedder_from(arguments)
    analyzer = FaceAnalyzer(detector_from(arguments), parser_from(arguments), embedder)
    filled, found = with_faces(photos, analyzer, settings)
    written = 0
    for file, photo, one in zip(names.photos, filled, found, strict=True):
        made = dict(_files(file, names, photo, one, arguments.overwrite))
        write_all(made)
        told = " and ".join(path.name for path in made) or "nothing"
        logger.info("%s", f"{photo.name}: {one.seen}; wrote {told}")
        written += len(made)
    tell_origins(found)
    if arguments.sheet:
        save_image(contact_sheet(filled, found), arguments.sheet, _SHEET)
        logger.info("Wrote %s", arguments.sheet)
    if all(one.face is None for one in found):
        raise InputError(f"No face was found in any photo of {names.folder}.")
    if written:
        logger.info("White is the face; paint in the masks where they are wrong.")
    if not arguments.overwrite and written < 2 * len(filled):
        logger.info("What was there was left as it is; --overwrite makes it anew.")


def _files(
    file: Path, names: Found, photo: Photo, found: FoundFace, overwrite: bool
) -> Iterator[tuple[Path, Write]]:
    """What to write of what was found in the photo of a file."""
    if found.face is None or photo.landmarks is None:
        return
    _, size = open_picture(file)
    mask = photo.face_mask if found.origin in ("parsed", "oval") else None
    place = place_beside(file, MASK, names, names.masks.get(file), overwrite)
    if mask is not None and place:
        yield place, mask_writer(mask, size)
    if place := place_beside(file, LANDMARKS, names, names.landmarks.get(file), overwrite):
        yield place, landmarks_writer(photo, size)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `masks`."""
    add_photos(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="Make anew the masks and landmarks that are there."
    )
    option(
        parser,
        "--cut-out",
        Path,
        "For things: an ONNX file of U^2-Net or IS-Net, which the package rembg runs, marks what "
        "stands out in each photo. No face is looked for.",
        shown="none",
        metavar="FILE",
    )
    for name in ("parts", "grow", "feather"):
        setting_option(parser, MaskSettings, name)
    option(parser, "--sheet", Path, "Write a contact sheet (.png).", shown="none", metavar="FILE")
    add_faces(parser.add_argument_group("faces"), parser_model=True, optional=True)
