"""Pictures as files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..files import atomic_write
from ..images import to_pil


def save_image(image: Tensor, path: Path, prompt: str, seed: int | None = None) -> None:
    """Write an image (3,H,W) in 0..1 as PNG, its prompt and seed inside."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", prompt)
    if seed is not None:
        info.add_text("seed", str(seed))
    atomic_write(path, lambda temporary: to_pil(image).save(temporary, pnginfo=info))


def free_path(folder: Path, stem: str) -> Path:
    """The first of stem-0001.png, stem-0002.png and so on that does not exist yet."""
    number = 1
    while (path := folder / f"{stem}-{number:04}.png").exists():
        number += 1
    return path
