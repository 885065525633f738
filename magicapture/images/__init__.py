"""Pictures: read from files, brought to Pillow and back, and changed as tensors."""

from .filters import (
    LUMA,
    adjust_brightness,
    adjust_contrast,
    gaussian_blur,
    luma,
    resize,
)
from .pillow import from_pil, to_pil
from .reading import Picture, bounded, read_picture

__all__ = [
    "LUMA",
    "Picture",
    "adjust_brightness",
    "adjust_contrast",
    "bounded",
    "from_pil",
    "gaussian_blur",
    "luma",
    "read_picture",
    "resize",
    "to_pil",
]
