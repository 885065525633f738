"""A folder of photos as a reference set, with masks, captions and landmarks where they lie beside.

- Photos: png, jpg, jpeg, webp, bmp, in natural order, turned upright by their EXIF data.
- Mask of `ada.jpg`: `ada.mask.png` beside it, or `ada.png` in the sub-folder `masks` (or in the
  folder given). White marks the FACE, for a style as well.
- A cut-out's transparency becomes white; without a mask file it is the mask, with a warning.
- Caption: `ada.txt`. Landmarks: `ada.landmarks.json`, five [x, y] pairs.

Anything else is left alone, with a warning.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..config import Role
from ..errors import InputError
from .references import ReferenceSet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of picture files, whatever their case."""

MAX_SHORT_SIDE = 1536
"""Larger photos are scaled down on loading to this short side, in pixels, to save memory."""

_MASK = ".mask"


@dataclass(frozen=True)
class Picture:
    """A photo (3,H,W) in 0..1, its transparency (1,H,W) if it has any, its size in the file."""

    image: Tensor
    alpha: Tensor | None
    size: tuple[int, int]  # height, width before scaling down


def load_folder(
    path: str | os.PathLike[str], role: Role, *, masks: str | os.PathLike[str] | None = None
) -> ReferenceSet:
    """Read every photo of a folder, with the masks in it or in the folder `masks`.

    Raises InputError for a folder that is missing, is a file or has no photo, and for a file that
    cannot be read. Files left alone are listed in the set's warnings.
    """
    folder = _folder(path, "photos")
    mask_folder = _folder(masks, "masks") if masks is not None else folder / "masks"
    files = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    pictures = sorted(filter(_is_picture, files), key=lambda f: (natural(f.name), f.name))
    photos = [f for f in pictures if not f.stem.lower().endswith(_MASK)]
    if not photos:
        raise InputError(
            f"The folder {folder} has no photo; expected files ending in {', '.join(SUFFIXES)}"
            + (f", found {_listed([f.name for f in files])}." if files else "; it is empty.")
        )
    beside = {f.stem[: -len(_MASK)]: f for f in pictures if f not in photos}
    apart = _pictures_by_stem(mask_folder)
    found = apart | beside if masks is None else beside | apart
    mask_of = {p.stem: found[p.stem] for p in photos if p.stem in found}

    used = {*photos, *mask_of.values(), mask_folder}
    loaded, cut_outs = [], []
    for photo in photos:
        texts = photo.with_suffix(".txt"), photo.with_suffix(".landmarks.json")
        used.update(texts)
        picture = read_picture(photo)
        mask_file = mask_of.get(photo.stem)
        mask = picture.alpha if mask_file is None else read_mask(mask_file, picture)
        if mask_file is None and mask is not None:
            cut_outs.append(photo.name)
        caption, points = _read_caption(texts[0]), _read_landmarks(texts[1], picture)
        loaded.append((picture.image, mask, points, caption))
    warnings = []
    if left := [f.name for f in {*files, *apart.values()} - used]:
        warnings.append(f"In the folder {folder} these were left alone: {_listed(left)}.")
    if cut_outs:
        warnings.append(
            f"{_listed(cut_outs)}: no mask file, so what is not transparent is taken as the face."
        )
    images, faces, landmarks, captions = zip(*loaded, strict=True)
    names = tuple(photo.name for photo in photos)
    of_faces = ReferenceSet(
        images, faces, landmarks, captions, names, "subject", warnings=tuple(warnings)
    )
    return of_faces.with_role(role)


def natural(name: str) -> list[str | int]:
    """A sort key by which photo2 comes before photo10."""
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name.casefold())]


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder that holds the {what}.")
    if not folder.is_dir():
        raise InputError(f"The folder of {what} {folder} does not exist; check the path.")
    return folder


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def _pictures_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = sorted(f for f in folder.iterdir() if _is_picture(f) and not f.name.startswith("."))
    return {f.stem: f for f in files}


def _listed(names: list[str], most: int = 10) -> str:
    names = sorted(names, key=natural)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_picture(file: Path) -> Picture:
    """Read a photo of any colour mode, upright, over white, bounded by MAX_SHORT_SIDE.

    Raises InputError when the file is damaged.
    """
    image = _open(file)
    size = image.height, image.width
    image = _bounded(image)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        opacity = _tensor(image.getchannel("A"))
        alpha = opacity if bool((opacity < 1).any()) else None
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Picture(_tensor(image.convert("RGB")), alpha, size)


def read_mask(file: Path, picture: Picture) -> Tensor:
    """Read a mask (1,H,W): its transparency if it has any, else its brightness.

    A mask of its picture's size in the file gets the picture's size; raises InputError when the
    file is damaged.
    """
    image = _open(file)
    size = image.height, image.width
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        image = alpha if np.asarray(alpha).min() < 255 else image
    image = image.convert("L")
    if np.asarray(image).max() == 1:  # written as 0 and 1
        image = image.point(lambda value: 255 * value)
    if size == picture.size:
        height, width = picture.image.shape[-2:]
        image = image.resize((width, height), Image.Resampling.BOX)
    return _tensor(image)


def _open(file: Path) -> Image.Image:
    """A picture file decoded, upright, at 8 bits a channel."""
    try:
        with Image.open(file) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds
        raise InputError(
            f"{file} cannot be read ({error}); it may be damaged or not be a picture. Save it anew "
            "as PNG or JPEG, or take it out of the folder."
        ) from error
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image


def bounded(height: int, width: int) -> tuple[int, int]:
    """A photo's height and width, scaled down to a short side of MAX_SHORT_SIDE where larger."""
    scale = min(1.0, MAX_SHORT_SIDE / min(height, width))
    return round(height * scale), round(width * scale)


def _bounded(image: Image.Image) -> Image.Image:
    height, width = bounded(image.height, image.width)
    if (width, height) == image.size:
        return image
    if image.mode in ("P", "1"):  # cannot be resampled smoothly as they are
        image = image.convert("RGBA")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _tensor(image: Image.Image) -> Tensor:
    """(C,H,W) float32 in 0..1."""
    values = np.array(image)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values)).float() / 255


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text("utf-8-sig") if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text ({error}); save it as UTF-8.") from error


def _read_caption(file: Path) -> str | None:
    text = _read_text(file)
    return (" ".join(text.split()) or None) if text else None


def _read_landmarks(file: Path, picture: Picture) -> Tensor | None:
    text = _read_text(file)
    if text is None:
        return None
    try:
        points = torch.tensor(json.loads(text), dtype=torch.float32)
        if points.shape == (5, 2) and math.isfinite(float(points.sum())):
            height, width = picture.image.shape[-2:]
            scale = torch.tensor([width / picture.size[1], height / picture.size[0]])
            return (points + 0.5) * scale - 0.5
    except (ValueError, TypeError, RuntimeError):
        pass
    raise InputError(
        f"{file} does not hold five [x, y] pairs as JSON: the eye on the left of the picture, the "
        "eye on the right, the nose, the mouth's left and right corner, in pixels."
    )
