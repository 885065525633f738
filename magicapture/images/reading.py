"""Picture files: only the formats named here are opened, whatever a file is called.

Pillow opens some forty, and hands PostScript, for one, to another program.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from ..errors import InputError
from ..files import printable
from .pillow import from_pil

ENDINGS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
"""The formats that are read, by Pillow's names, and the endings of their files."""

NEEDS = {
    "AVIF": "Pillow 11.3 or newer",
    "HEIF": "the package pillow-heif (pip install pillow-heif)",
}
"""What reads the formats that not every installation can."""

_BRANDS = {"AVIF": (b"avif", b"avis"), "HEIF": (b"heic", b"heix", b"heim", b"heis", b"mif1")}
_SEVERAL = ("TIFF", "PNG", "WEBP", "AVIF")  # a phone's MPO and HEIF hold further pictures as usual

MAX_SHORT_SIDE = 1536
"""Larger pictures are scaled down on loading to this short side, in pixels, to save memory."""

MAX_LONG_SIDE = 4 * MAX_SHORT_SIDE
"""Longer pictures, such as panoramas, are scaled down to this long side."""

MAX_MEGAPIXELS = 120
"""Larger files are refused: decoding them takes gigabytes."""

MAX_JPEG_MEGAPIXELS = 250
"""The same for JPEG, which is decoded at a half, a quarter or an eighth where that is enough."""

_JPEG = ("JPEG", "MPO")  # a phone's JPEG with a second picture behind it is an MPO
_COUNT = "pictures in the file"  # kept in a picture's info
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_MODE_OF_PROFILE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}
_INTEGERS = (2**16 - 1, 2**32 - 1)
_FLOATS = (1, 2**8 - 1, 2**16 - 1)


@dataclass(frozen=True)
class Picture:
    """A picture (3,H,W) in 0..1, its transparency (1,H,W) if it has any, its size in the file.

    warning: what was wrong with the file, or None.
    """

    image: Tensor
    alpha: Tensor | None
    size: tuple[int, int]  # height, width before scaling down
    warning: str | None = None


@cache
def formats() -> tuple[str, ...]:
    """The formats of ENDINGS that can be read here."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    Image.init()
    lacking = {name for name in ("AVIF", "WEBP") if not features.check(name.lower())}
    return tuple(name for name in ENDINGS if name in Image.OPEN and name not in lacking)


def read_picture(file: Path) -> Picture:
    """Read a picture of any colour mode, upright, in sRGB, over white, bounded in size.

    Raises InputError for a file that is damaged, too large or of another format.
    """
    image, size = open_picture(file)
    count = image.info[_COUNT]
    image = _scaled(in_eight_bits(image, file))
    alpha = None
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        opacity = image.convert("RGBA").getchannel("A")
        colours, warning = _in_srgb(_opaque(image), image.info.get("icc_profile"))
        alpha = from_pil(opacity) if np.asarray(opacity).min() < 255 else None
        colours.putalpha(opacity)
        colours = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    else:
        colours, warning = _in_srgb(image, image.info.get("icc_profile"))
    if count > 1:
        warning = " ".join(
            [f"the first of its {count} pictures is read.", *filter(None, [warning])]
        )
    return Picture(from_pil(colours.convert("RGB")), alpha, size, warning)


def open_picture(file: Path) -> tuple[Image.Image, tuple[int, int]]:
    """A picture file decoded and upright, in its own mode; its height and width in the file.

    A large JPEG comes smaller than it is in the file, but at least twice as large as `bounded`
    asks for. Raises InputError for a file that is damaged, too large or of another format.
    """
    try:
        # From a stream: Pillow maps an uncompressed TIFF into memory by its name, and then takes
        # one that lies on its side for a picture of the other shape.
        with (
            _no_limit(),
            file.open("rb") as stream,
            Image.open(stream, formats=formats()) as image,
        ):
            _require_megapixels(file, image)
            whole = None
            if image.format in _JPEG:
                width, height = image.size
                on_its_side = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                whole = (width, height) if on_its_side else (height, width)
                least = bounded(height, width)
                image.draft(None, (2 * least[1], 2 * least[0]))
            count = getattr(image, "n_frames", 1) if image.format in _SEVERAL else 1
            image.load()
            image.info[_COUNT] = count
            ImageOps.exif_transpose(image, in_place=True)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds
        raise _unreadable(file, error) from error
    return image, whole or (image.height, image.width)


@contextmanager
def _no_limit() -> Iterator[None]:
    """Without Pillow's limit of pixels, which has ours in its place."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _require_megapixels(file: Path, image: Image.Image) -> None:
    is_jpeg = image.format in _JPEG
    most = MAX_JPEG_MEGAPIXELS if is_jpeg else MAX_MEGAPIXELS
    width, height = image.size
    if width * height > most * 1e6:
        instead = "" if is_jpeg else f", or save it as JPEG (up to {MAX_JPEG_MEGAPIXELS})"
        raise InputError(
            f"{printable(file)} is {width}x{height} pixels, {width * height / 1e6:.0f} megapixels; "
            f"at most {most} are read. Scale it down: {MAX_SHORT_SIDE} pixels on the short side "
            f"are enough{instead}."
        )


def _unreadable(file: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    cure = "it may be damaged. Save it anew as PNG or JPEG, or take it out of the folder."
    if isinstance(error, OSError) and error.errno is not None:
        reason, cure = os.strerror(error.errno), "check that it is there and may be read."
    elif isinstance(error, UnidentifiedImageError):
        reason, needed = _unknown(file)
        cure = f"{needed}save it anew as PNG or JPEG, or take it out of the folder."
    return InputError(f"{printable(file)} cannot be read ({reason}); {cure}")


def _unknown(file: Path) -> tuple[str, str]:
    """Why no reader takes a file, by how it begins, and what would."""
    with file.open("rb") as opened:
        start = opened.read(16)
    if not start:
        return "the file is empty", ""
    for name, brands in _BRANDS.items():
        if start[4:8] == b"ftyp" and start[8:12] in brands and name not in formats():
            return f"it holds {name}", f"reading that needs {NEEDS[name]}; or "
    for name in formats():
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(start) is True:
            return f"it is {name}, damaged or of a kind that is not read", ""
    return f"its content is none of {', '.join(formats())}", ""


def in_eight_bits(
    image: Image.Image, file: Path, integers: Sequence[int] = _INTEGERS
) -> Image.Image:
    """A picture of 16 or 32 bits or of floats at 8 bits, where Pillow would cut it off at 255.

    White is the first of `integers`, or of 1, 255 and 65535 for floats, that the brightest value
    does not exceed twofold. Raises InputError for values that are no numbers.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.min() < 0:
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise InputError(
            f"{printable(file)} holds values that are no numbers; save it anew as PNG or JPEG."
        )
    high = values.max()
    steps = _FLOATS if image.mode == "F" else integers
    white = next((step for step in steps if high <= 2 * step), steps[-1])
    eight = (values.astype(np.float64) * (255 / white)).clip(0, 255).round().astype(np.uint8)
    result = Image.fromarray(eight)
    result.info = {k: v for k, v in image.info.items() if k != "transparency"}
    return result


def bounded(height: int, width: int) -> tuple[int, int]:
    """A picture's height and width within MAX_SHORT_SIDE and MAX_LONG_SIDE, its shape kept."""
    sides = min(height, width), max(height, width)
    scale = min(1.0, MAX_SHORT_SIDE / sides[0], MAX_LONG_SIDE / sides[1])
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scaled(image: Image.Image) -> Image.Image:
    height, width = bounded(image.height, image.width)
    if (width, height) == image.size:
        return image
    if image.mode in ("P", "1") or "transparency" in image.info:  # no mixing as they are
        image = image.convert("RGBA")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _opaque(image: Image.Image) -> Image.Image:
    """A picture without its transparency: grey where it was grey, else RGB."""
    return image.convert("L") if image.mode == "LA" else image.convert("RGBA").convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """An opaque picture's colours in sRGB, mode RGB, and what was wrong with its profile."""
    try:
        if image.mode == "LAB":
            own = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return image.convert("RGB"), None
        space = own.profile.xcolor_space.strip().upper()
        mode = _MODE_OF_PROFILE[space]
        if mode != image.mode and (mode != "RGB" or image.mode == "CMYK"):
            return image.convert("RGB"), f"its colour profile is for {space} and is ignored."
        shown = ImageCms.profileToProfile(
            image.convert(mode),
            own,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        assert shown is not None
        return shown, None
    except (ImageCms.PyCMSError, OSError, KeyError, ImportError):
        return image.convert("RGB"), "its colour profile is damaged and is ignored."
