"""The named recipes, read from this folder when first asked for, and recipe files of the user."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..config import Recipe, from_dict, to_dict
from ..errors import InputError, StorageError
from ..settings import COMMENT, from_json

DEFAULT = "magicapture"

_FOLDER = Path(__file__).parent
_LARGEST = 1_000_000  # bytes; a recipe has a few thousand

RECIPE_NAMES = (
    DEFAULT,
    *sorted(file.stem for file in _FOLDER.glob("*.json") if file.stem != DEFAULT),
)


def recipe(name: str = DEFAULT) -> Recipe:
    """The recipe of this name; raises InputError for a name there is not."""
    return from_dict(Recipe, _data(name))


def comment_of(name: str) -> str:
    """What a named recipe is, in a sentence; raises as `recipe`."""
    return str(_data(name)[COMMENT])


def commented(name: str) -> dict[str, Any]:
    """All settings of a named recipe, with the comments of its file; raises as `recipe`."""
    merged: dict[str, Any] = _with_comments(to_dict(recipe(name)), _data(name))
    return merged


def read_recipe(file: Path) -> Recipe:
    """The recipe in a JSON file, named after the file where it has no name.

    Raises StorageError for a file that cannot be read, InputError for one that holds no recipe,
    or a setting that is unknown, of a wrong type or out of range.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST + 1)
    except OSError as error:
        raise StorageError(f"The recipe {file} cannot be read: {error}") from error
    try:
        if len(text) > _LARGEST:
            raise InputError(f"the file has more than {_LARGEST} bytes, and so is no recipe.")
        data = from_json(text)
        if isinstance(data, dict):
            data.setdefault("name", file.stem)
        return from_dict(Recipe, data)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


@cache
def _data(name: str) -> dict[str, Any]:
    if name not in RECIPE_NAMES:
        raise InputError(f"There is no recipe {name!r}; there are {', '.join(RECIPE_NAMES)}.")
    data: dict[str, Any] = from_json((_FOLDER / f"{name}.json").read_bytes())
    return data


def _with_comments(data: Any, source: Any) -> Any:
    """The data with each comment of `source` at its place."""
    if isinstance(data, dict) and isinstance(source, Mapping):
        comment = {COMMENT: source[COMMENT]} if COMMENT in source else {}
        return comment | {
            name: _with_comments(value, source.get(name)) for name, value in data.items()
        }
    if isinstance(data, list) and isinstance(source, list):
        return [_with_comments(*pair) for pair in zip(data, source, strict=True)]
    return data
