"""Folders of people and of styles: which pictures are trained on, and which are held out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data import ReferenceSet, load_folder
from ..errors import InputError

logger = logging.getLogger(__name__)

FEWEST = 4
"""Pictures that each person and each style must have; the paper trains on 4 to 6."""

HELD_OUT = 10
"""Pictures held out at most."""

Fill = Callable[[ReferenceSet], ReferenceSet]
"""Fills in the masks and landmarks that pictures lack, as `data.faces.with_faces` does."""


@dataclass(frozen=True, eq=False)
class Shots:
    """The pictures of one person or of one style.

    name: its folder's, for messages here; reports number them. used: trained on. held: not.
    """

    name: str
    used: ReferenceSet
    held: ReferenceSet


def read_people(folder: Path, most: int, photos: int, fill: Fill) -> tuple[Shots, ...]:
    """The first people of a folder that holds a folder of photos for each, by name.

    photos: how many of each are trained on; the next ones are held out. Raises InputError for
    folders of another layout, and for a person with fewer than FEWEST photos that show a face.
    """
    people = _folders(folder, "--faces")
    if not people:
        raise InputError(
            f"--faces: {folder} holds no folders; expected one for each person, such as "
            f"{folder / 'ada'}, with {FEWEST} photos of theirs or more. docs/bench.md names sets "
            "of photos with a free licence."
        )
    return tuple(_read(one, "--faces", photos, fill) for one in people[:most])


def read_styles(folder: Path, most: int, photos: int, fill: Fill) -> tuple[Shots, ...]:
    """The first styles of a folder; portraits that lie loose in it are one style.

    Raises InputError for a folder that is missing, or a style with fewer than FEWEST portraits
    that show a face.
    """
    styles = _folders(folder, "--styles") or [folder]
    return tuple(_read(one, "--styles", photos, fill) for one in styles[:most])


def _folders(folder: Path, flag: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{flag}: there is no folder {folder}; check the path.")
    try:
        inner = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be read ({error.strerror}).") from error
    hidden = ("masks", "mask")
    return sorted(p for p in inner if not p.name.startswith(".") and p.name.lower() not in hidden)


def _read(folder: Path, flag: str, photos: int, fill: Fill) -> Shots:
    try:
        filled = fill(load_folder(folder))
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error
    shown = [i for i, p in enumerate(filled) if p.landmarks is not None and p.face_mask is not None]
    for photo in (p for i, p in enumerate(filled) if i not in shown):
        logger.warning("%s", f"{folder.name}/{photo.name}: no face was found; it is left out.")
    if len(shown) < FEWEST:
        raise InputError(
            f"{flag}: {folder} has {len(shown)} pictures in which a face is found; expected "
            f"{FEWEST} or more. Add some, or move the folder away."
        )
    held = shown[photos : photos + HELD_OUT]
    return Shots(folder.name, filled.only(shown[:photos]), filled.only(held))
