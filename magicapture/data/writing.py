"""A reference set as a folder that `load_folder` reads again."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..backups import write_all
from ..errors import InputError
from ..files import require_space, safe_name
from ..images import Picture, read_picture, to_pil
from ..images.reading import ENDINGS
from .companions import CAPTION, LANDMARKS, MASK, Found, found_in, is_mask_name
from .folder import read_beside
from .photos import Photo, ReferenceSet

_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)
_PIXEL = 4  # bytes that a pixel and its mask take at most

Write = Callable[[Path], object]
Owner = tuple[Path, Picture | None]  # a photo's file, and the picture in it if it is there


@dataclass(frozen=True)
class SavedSet:
    """Where a set lies, what was written there ("mask" and so on), and the backups of old files."""

    folder: Path
    files: dict[Path, str]
    backups: tuple[Path, ...]

    def __str__(self) -> str:
        kinds = [*self.files.values()]
        counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        return ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items()) or "no file"


def save_photo_set(references: ReferenceSet, folder: str | os.PathLike[str]) -> SavedSet:
    """Write a set's photos, face masks, landmarks and captions into a folder.

    A photo that is there already stays as it is, and what is known about it goes beside it; what
    that replaces is kept as `.bak1`, `.bak2`. A folder with other photos is left alone, and
    `folder-2` or the next free one taken. Raises InputError for a file that is there and cannot be
    read, and StorageError where nothing can be written; then everything is as it was.
    """
    found, owners = _place(references, Path(folder))
    files: dict[Path, tuple[str, Write]] = {}
    for photo, owner in zip(references, owners, strict=True):
        for kind, file, write in _of_photo(photo, owner, found):
            files[file] = kind, write
    require_space(found.folder, sum(_PIXEL * photo.image[0].numel() for photo in references))
    kept = write_all({file: write for file, (_, write) in files.items()})
    kinds = {file: kind for file, (kind, _) in files.items()}
    return SavedSet(found.folder, kinds, kept.backups)


def _place(references: ReferenceSet, wanted: Path) -> tuple[Found, list[Owner]]:
    """The folder wanted, or the next one without other photos, and the set's files there."""
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    for folder in itertools.chain([wanted], numbered):
        found = _present(folder)
        owners = None if found is None else _owners(references, found)
        if found is not None and owners is not None:
            return found, owners
    raise AssertionError


def _present(folder: Path) -> Found | None:
    """What lies in a folder, which may be missing or empty; None for one not to be used."""
    nothing = Found(folder, [], {}, {}, {})
    if not os.path.lexists(folder):
        return nothing
    try:
        return found_in(folder) if any(folder.iterdir()) else nothing
    except (InputError, OSError):
        return None


def _owners(references: ReferenceSet, found: Found) -> list[Owner] | None:
    """Each photo's file in a folder; None where other photos lie there."""
    there = {file.stem.casefold(): file for file in found.photos}
    if len(there) < len(found.photos):
        return None
    owners: list[Owner] = []
    for photo, stem in zip(references, _stems(references), strict=True):
        file = there.pop(stem.casefold(), None)
        picture = None if file is None else read_picture(file)
        if picture is not None and not _same(picture.image, photo.image):
            return None
        owners.append((file or found.folder / f"{stem}.png", picture))
    return None if there else owners


def _stems(references: ReferenceSet) -> list[str]:
    """A file name without ending for each photo: all differ, and none could be a mask's."""
    stems: list[str] = []
    for number, name in enumerate(references.names, start=1):
        stem = name[: name.rindex(".")] if name.lower().endswith(_ENDINGS) else name
        try:
            stem = safe_name(stem, "photo's name")
        except InputError:
            stem = f"photo-{number}"
        stem = f"photo-{number}" if is_mask_name(stem) else stem
        taken = {each.casefold() for each in stems}
        free = (f"{stem}-{n}" for n in itertools.count(2))
        stems.append(next(s for s in itertools.chain([stem], free) if s.casefold() not in taken))
    return stems


def _of_photo(photo: Photo, owner: Owner, found: Found) -> Iterator[tuple[str, Path, Write]]:
    """What to write for a photo, by kind: its picture if it is not there, and what differs."""
    file, picture = owner
    old, size = Photo(photo.image), photo.size
    if picture is None:
        yield "photo", file, _picture(photo.image, "PNG")
    else:
        old, size = read_beside(file, picture, found), picture.size
    if photo.face_mask is not None and not _same(old.face_mask, photo.face_mask):
        path = found.masks.get(file, file.with_name(file.stem + MASK))
        format = Image.registered_extensions()[path.suffix.lower()]
        yield "mask", path, mask_writer(photo.face_mask, photo.size, format)
    if photo.landmarks is not None and not _same(old.landmarks, photo.landmarks, 0.05):
        path = found.landmarks.get(file, file.with_name(file.stem + LANDMARKS))
        yield "landmark file", path, landmarks_writer(photo, size)
    if photo.caption is not None and photo.caption != old.caption:
        path = found.captions.get(file, file.with_name(file.stem + CAPTION))
        yield "caption", path, _text(photo.caption)


def _same(one: Tensor | None, other: Tensor, tolerance: float = 1.01 / 255) -> bool:
    if one is None or one.shape != other.shape:
        return False
    return float((one - other.to(one)).abs().max()) <= tolerance


def mask_writer(mask: Tensor, size: tuple[int, int], format: str = "PNG") -> Write:
    """Writes a mask (1,H,W) as a grey picture of `size` (height, width)."""
    if tuple(mask.shape[-2:]) != size:
        mask = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    return _picture(mask, format)


def landmarks_writer(photo: Photo, size: tuple[int, int]) -> Write:
    """Writes a photo's landmarks as JSON, in the pixels of its file of `size` (height, width)."""
    assert photo.landmarks is not None
    height, width = photo.size
    scale = torch.tensor([size[1] / width, size[0] / height])
    points = (photo.landmarks.detach().float().cpu() + 0.5) * scale - 0.5
    return _text(json.dumps([[round(value, 2) for value in point] for point in points.tolist()]))


def _picture(image: Tensor, format: str) -> Write:
    return lambda path: to_pil(image).save(path, format)


def _text(text: str) -> Write:
    return lambda path: path.write_text(text + "\n", "utf-8")
