"""Pictures as files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch import Tensor

from ..data import ReferenceSet, load_folder
from ..files import atomic_write
from ..images import read_picture, to_pil
from ..provenance import tell_maker

logger = logging.getLogger(__name__)


def photos_in(folder: str | os.PathLike[str]) -> ReferenceSet:
    """The photos of a folder; says which files were left alone. Raises as `load_folder`."""
    photos = load_folder(folder)
    for warning in photos.warnings:
        logger.warning("%s", warning)
    return photos


def picture_in(file: Path) -> Tensor:
    """The picture (3,H,W) of a file; says what is wrong with it. Raises as `read_picture`."""
    picture = read_picture(file)
    if picture.warning:
        logger.warning("%s: %s", file, picture.warning)
    return picture.image


def save_image(
    image: Tensor, path: Path, prompt: str, seed: int | None = None, *, made_with: bool = False
) -> None:
    """Write an image (3,H,W) in 0..1 as PNG, its prompt and seed inside.

    made_with: say in the file that a model drew it, by this program.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", prompt)
    if seed is not None:
        info.add_text("seed", str(seed))
    if made_with:
        tell_maker(info)
    picture = to_pil(image)
    atomic_write(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=info))


def free_path(folder: Path, stem: str) -> Path:
    """The first of stem-0001.png, stem-0002.png and so on that does not exist yet."""
    number = 1
    while (path := folder / f"{stem}-{number:04}.png").exists():
        number += 1
    return path
