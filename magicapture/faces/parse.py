"""Face parsers from the user's files; the file's content says which of `parsers` it is."""

from __future__ import annotations

from pathlib import Path

from .labelling import FaceParser
from .registry import load_model


def load_parser(path: str | Path) -> FaceParser:
    """A face parser from a file of facexlib's BiSeNet or ParseNet (.pth or .safetensors).

    Raises StorageError for a file that is missing or damaged, InputError for another network or
    one with numbers that are none, MagiCaptureError where facexlib is not installed.
    """
    parser: FaceParser = load_model("parser", path)
    return parser
