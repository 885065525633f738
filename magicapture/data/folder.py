"""A folder of photos as a reference set, with masks, captions and landmarks where they lie beside.

- Photos: PNG, JPEG, WebP, BMP, TIFF, AVIF and HEIC files, in natural order, turned upright by their
  EXIF data, their colours brought to sRGB.
- Mask of `ada.jpg`: `ada.mask.png` beside it, or `ada.png` in the sub-folder `masks` (or in the
  folder given). White marks the FACE, for a style as well. The names of other trainers do, too
  (`companions`). It gets the photo's size.
- A cut-out's transparency becomes white; without a mask file it is the mask, with a warning.
- Caption: `ada.txt`. Landmarks: `ada.landmarks.json`, five [x, y] pairs in the file's pixels.

Anything else is left alone, with a warning.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..files import printable
from ..images import Picture, read_picture
from ..images.pillow import from_pil
from ..images.reading import in_eight_bits, open_picture
from .companions import Found, found_in
from .masks import INVERTED, fit, looks_inverted
from .photos import Photo, ReferenceSet

LONGEST_CAPTION = 2000
"""Captions with more characters are refused; a text encoder reads some 75 words."""

_LARGEST_TEXT = 100_000  # bytes of a caption's or landmarks' file


def load_folder(
    path: str | os.PathLike[str], *, masks: str | os.PathLike[str] | None = None
) -> ReferenceSet:
    """Read every photo of a folder, with the masks in it or in the folder `masks`.

    Raises InputError for a folder that is missing, may not be read, or has no photo or thousands,
    for a file that cannot be read, and for one that two photos would share. Files left alone are
    listed in the set's warnings.
    """
    found = found_in(path, masks)
    photos, warnings = [], [*found.warnings]
    for file in found.photos:
        photo, noticed = _read(file, found)
        photos.append(photo)
        warnings += noticed
    return ReferenceSet(tuple(photos), tuple(warnings))


def _read(file: Path, found: Found) -> tuple[Photo, list[str]]:
    """A photo with what lies beside it, and what was noticed."""
    name, warnings = printable(file.name), []
    picture = read_picture(file)
    if picture.warning:
        warnings.append(f"{name}: {picture.warning}")
    photo = read_beside(file, picture, found)
    mask = photo.face_mask
    if mask is not None and file not in found.masks:
        warnings.append(f"{name}: no mask file, so what is not transparent is taken as the mask.")
    if mask is not None and photo.landmarks is None and looks_inverted(mask):
        warnings.append(f"{name}: {INVERTED}")
    return photo, warnings


def read_beside(file: Path, picture: Picture, found: Found) -> Photo:
    """A photo of a folder that has been read, with the mask, landmarks and caption beside it.

    Raises InputError for one of them that cannot be read.
    """
    mask_file = found.masks.get(file)
    mask = picture.alpha if mask_file is None else read_mask(mask_file, picture)
    landmarks = _read_landmarks(found.landmarks.get(file), picture)
    caption = read_caption(file, found)
    return Photo(picture.image, mask, landmarks, caption, printable(file.name))


def read_caption(file: Path, found: Found) -> str | None:
    """The caption beside a photo of a folder, if there is one; InputError if it cannot be read."""
    text = found.captions.get(file)
    return None if text is None else caption_of(_read_text(text), printable(text))


def read_mask(file: Path, picture: Picture) -> Tensor:
    """Read a mask (1,H,W) at its picture's size: its transparency if it has any, else its light.

    Raises InputError for a file that cannot be read, or of another shape than the picture.
    """
    image, size = open_picture(file)
    image = in_eight_bits(image, file, (1, 2**8 - 1, 2**16 - 1, 2**32 - 1))
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        image = alpha if np.asarray(alpha).min() < 255 else image
    image = image.convert("L")
    if np.asarray(image).max() == 1:  # written as 0 and 1
        image = image.point(lambda value: 255 * value)
    height, width = picture.image.shape[-2:]
    if size == picture.size:
        return from_pil(image.resize((width, height), Image.Resampling.BOX))
    try:
        return fit(from_pil(image), (height, width))
    except InputError as error:
        raise InputError(f"{printable(file)}: {error}.") from error


def _read_text(file: Path) -> str:
    name = printable(file)
    try:
        size = file.stat().st_size
        if size > _LARGEST_TEXT:
            raise InputError(
                f"{name} has {size:,} bytes; expected a short text of at most {_LARGEST_TEXT:,}. "
                "Shorten it, or take it out of the folder."
            )
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} cannot be read as text ({error}); save it as UTF-8.") from error
    except OSError as error:
        raise InputError(
            f"{name} cannot be read ({error.strerror}); check that it may be read."
        ) from error


def caption_of(text: str, where: str) -> str | None:
    """A caption on one line, without spaces around it; None for an empty one.

    `where` names it in the message. Raises InputError for more than LONGEST_CAPTION characters.
    """
    text = " ".join(text.split())
    if len(text) > LONGEST_CAPTION:
        raise InputError(
            f'{where} is a caption of {len(text):,} characters ("{text[:40]}..."); expected at '
            f"most {LONGEST_CAPTION:,}, of which a text encoder reads some 75 words. Shorten it."
        )
    return text or None


def _read_landmarks(file: Path | None, picture: Picture) -> Tensor | None:
    if file is None:
        return None
    try:
        points = torch.tensor(json.loads(_read_text(file)), dtype=torch.float32)
        if points.shape == (5, 2) and math.isfinite(float(points.sum())):
            height, width = picture.image.shape[-2:]
            scale = torch.tensor([width / picture.size[1], height / picture.size[0]])
            return (points + 0.5) * scale - 0.5
    except (ValueError, TypeError, RuntimeError, OverflowError):
        pass
    raise InputError(
        f"{printable(file)} does not hold five [x, y] pairs as JSON: the eye on the left of the "
        "picture, the eye on the right, the nose, the mouth's left and right corner, in pixels."
    )
