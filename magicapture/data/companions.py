"""Which files of a folder are photos, and which mask, caption and landmarks belong to which.

A mask is known by its name: `ada.mask.png`, `ada_mask.png`, `ada-mask.png`, `mask_ada.png`,
`ada.jpg.mask.png`, OneTrainer's `ada-masklabel.png`; or it lies in a folder of masks under the
photo's name, as for kohya's scripts and ai-toolkit. Capitals do not count.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..backups import is_backup
from ..errors import InputError
from ..files import printable
from ..images.reading import ENDINGS, NEEDS, formats

MOST_PHOTOS = 200
"""A folder with more photos is refused before the first is read: it is the wrong folder."""

MASK = ".mask.png"
CAPTION = ".txt"
LANDMARKS = ".landmarks.json"
"""The endings of the files beside a photo that are written here."""

_MASK = re.compile(r"(.+?)[-_. ]+(?:face[-_. ]?)?mask(?:label)?", re.IGNORECASE)
_MASK_BEFORE = re.compile(r"(?:face[-_. ]?)?mask[-_. ]+(.+)", re.IGNORECASE)
_NEVER_A_PHOTO = re.compile(r".+-condlabel", re.IGNORECASE)  # OneTrainer's conditioning image
_MASK_FOLDERS = ("masks", "mask")
_FORMATS = {ending: name for name, endings in ENDINGS.items() for ending in endings}


@dataclass(frozen=True)
class Found:
    """The photos of a folder in natural order, and by photo what belongs to them."""

    folder: Path
    photos: list[Path]
    masks: dict[Path, Path]
    captions: dict[Path, Path]
    landmarks: dict[Path, Path]
    warnings: list[str] = field(default_factory=list)


def found_in(
    path: str | os.PathLike[str],
    masks: str | os.PathLike[str] | None = None,
    *,
    most: float = MOST_PHOTOS,
) -> Found:
    """Look through a folder of photos, and through the folder `masks` if it is given.

    Raises InputError for a folder that is missing, may not be read, or has no photo or more than
    `most`, for a picture that is a broken link, and for a file that two photos would share.
    """
    folder, files = _listed(path, "photos")
    inner = [f for f in files if f.name.lower() in _MASK_FOLDERS and f.is_dir()]
    mask_folders = dict(_listed(f, "masks") for f in (inner if masks is None else [masks]))
    if folder.resolve() in {one.resolve() for one in mask_folders}:
        raise InputError(
            f"The folder of masks {printable(folder)} is that of the photos; leave it out for the "
            "masks that lie beside them."
        )
    in_mask_folder = [f for of in mask_folders.values() for f in of if _is_picture(f)]

    pictures = [f for f in files if _is_picture(f)]
    told = {f: _photo_of_mask(f, pictures) for f in pictures}
    photos = [f for f in pictures if told[f] is None and not _NEVER_A_PHOTO.fullmatch(f.stem)]
    if not photos:
        raise InputError(_no_photo(folder, files))
    if len(photos) > most:
        raise InputError(
            f"The folder {printable(folder)} has {len(photos):,} photos; at most {most} are "
            "read, and 4 to 6 make a concept. Put those that you mean into a folder of their own."
        )
    beside = _by_photo(((name, f) for f, name in told.items() if name is not None), photos)
    apart = _by_photo(((_photo_of_mask(f, photos) or f.stem, f) for f in in_mask_folder), photos)
    found = Found(
        folder,
        photos,
        apart | beside if masks is None else beside | apart,
        _by_photo(_ending_in(CAPTION, files), photos),
        _by_photo(_ending_in(LANDMARKS, files), photos),
    )
    used = {*photos, *mask_folders}
    for of_photos in (found.masks, found.captions, found.landmarks):
        used.update(of_photos.values())
    left = [f for f in (*files, *in_mask_folder) if f not in used and not is_backup(f)]
    return dataclasses.replace(found, warnings=list(_left_alone(folder, left)))


def picture_endings() -> tuple[str, ...]:
    """The endings of the pictures that are read here."""
    return tuple(ending for name in formats() for ending in ENDINGS[name])


def is_mask_name(stem: str) -> bool:
    """Whether a file name without its ending may be read as a mask's."""
    return any(pattern.fullmatch(stem) for pattern in (_MASK, _MASK_BEFORE, _NEVER_A_PHOTO))


def beside(photo: Path, ending: str, photos: Iterable[Path]) -> Path:
    """Where a photo's MASK or LANDMARKS is written, so that it is read as this one's alone.

    Raises InputError for a name that no other file can go by.
    """
    for name in (photo.stem, photo.name):
        file = photo.with_name(name + ending)
        told = _photo_of_mask(file, photos) if ending == MASK else name
        if told is not None and _named(told, photos) == [photo]:
            return file
    raise InputError(f"{printable(photo)} needs a name of its own; rename it.")


def place_beside(
    photo: Path, ending: str, names: Found, own: Path | None, overwrite: bool
) -> Path | None:
    """Where a file beside a photo goes; None where the user has one, which is to stay.

    Raises InputError for one to be made anew under another ending.
    """
    if own is None:
        return beside(photo, ending, names.photos)
    if overwrite and not ending.endswith(own.suffix.lower()):
        raise InputError(f"{own} does not end in {ending}; move it away, so that it can be made.")
    return own if overwrite else None


def natural(name: str) -> list[str | int]:
    """A sort key by which photo2 comes before photo10."""
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name.casefold())]


def _listed(path: str | os.PathLike[str], what: str) -> tuple[Path, list[Path]]:
    """A folder and what is in it, in natural order, without hidden files."""
    folder = Path(path)
    try:
        folder = folder.expanduser()
        if folder.is_file():
            raise InputError(
                f"{printable(folder)} is a file; give the folder that holds the {what}."
            )
        files = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        for file in files:
            file.is_file()  # raises where the folder may be listed but not entered
    except FileNotFoundError as error:
        raise InputError(
            f"The folder of {what} {printable(folder)} does not exist; check the path."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"The folder of {what} {printable(folder)} cannot be read ({reason}); check the path "
            "and who may read it."
        ) from error
    return folder, sorted(files, key=lambda f: (natural(f.name), f.name))


def _is_picture(file: Path) -> bool:
    if _FORMATS.get(file.suffix.lower()) not in formats():
        return False
    if file.is_symlink() and not file.exists():
        raise InputError(
            f"{printable(file)} is a link to {printable(os.readlink(file))}, which is not there; "
            "put the picture there, or take the link out of the folder."
        )
    return file.is_file()


def _photo_of_mask(file: Path, pictures: Iterable[Path]) -> str | None:
    """The name of the photo that a mask's file name tells, or None for a name as photos have.

    The names that begin with "mask" count only where there is such a photo.
    """
    if match := _MASK.fullmatch(file.stem):
        return match[1]
    match = _MASK_BEFORE.fullmatch(file.stem)
    return match[1] if match and _named(match[1], pictures) else None


def _named(name: str, pictures: Iterable[Path]) -> list[Path]:
    """The pictures of a name, with or without its ending, preferably in the same capitals."""
    whole = [f for f in pictures if _key(f.name) == _key(name)]
    found = whole or [f for f in pictures if _key(f.stem) == _key(name)]
    return [f for f in found if name in (f.name, f.stem)] or found


def _key(name: str) -> str:
    """A name without capitals, and its accents in the one way that file systems differ in."""
    return unicodedata.normalize("NFC", name).casefold()


def _by_photo(files: Iterable[tuple[str, Path]], photos: list[Path]) -> dict[Path, Path]:
    """Files by the photo that they belong to, from the photo's names that they tell."""
    found: dict[Path, Path] = {}
    for name, file in files:
        owners = _named(name, photos)
        if len(owners) > 1:
            names = " and ".join(printable(f.name) for f in owners)
            raise InputError(
                f"{printable(file)} belongs to both {names}; give these photos names that differ "
                "in more than their endings, and the file that of its photo."
            )
        for owner in owners:
            found.setdefault(owner, file)
    return found


def _ending_in(ending: str, files: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    for file in files:
        if file.name.lower().endswith(ending) and file.is_file():
            yield file.name[: -len(ending)], file


def _no_photo(folder: Path, files: list[Path]) -> str:
    endings = ", ".join(picture_endings())
    text = f"The folder {printable(folder)} has no photo; expected files ending in {endings}"
    if not files:
        return f"{text}; it is empty."
    return " ".join([f"{text}, found {_enumerated(files)}.", *_lacking(files)])


def _left_alone(folder: Path, files: list[Path]) -> Iterator[str]:
    if files:
        yield f"In the folder {printable(folder)} these were left alone: {_enumerated(files)}."
    yield from _lacking(files)
    lost = [f for f in files if _is_picture(f) and _photo_of_mask(f, ())]
    if lost:
        yield (
            f"{_enumerated(lost)}: a mask by the name, but there is no photo for it or another "
            "mask for the photo. Rename it if it is a photo."
        )


def _lacking(files: Iterable[Path]) -> Iterator[str]:
    """What would have to be installed for files whose format is not read here."""
    for name, needed in NEEDS.items():
        of_it = [f for f in files if _FORMATS.get(f.suffix.lower()) == name]
        if of_it and name not in formats():
            yield f"{_enumerated(of_it)}: reading it needs {needed}; or save it as JPEG."


def _enumerated(files: Iterable[Path], most: int = 10) -> str:
    files = sorted(files, key=lambda f: natural(f.name))
    names = [printable(f.name) + (" (a folder)" if f.is_dir() else "") for f in files]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
