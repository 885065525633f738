"""Settings that check themselves: every field against its type and range, named by its path.

A class of settings is a frozen dataclass that derives from `Checked`, its fields made by
`setting`. The same check runs when one is made in Python and when it is read from JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InputError

COMMENT = "comment"
"""A key that may stand in any object of a settings file; it is dropped on reading."""

LONGEST = 2000
"""Most characters of a text among the settings."""

C = TypeVar("C")
K = TypeVar("K", bound="Checked")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    multiple: int | None = None,
    check: Callable[[Any, str], None] | None = None,
    paper: Any = None,
    release: Any = None,
) -> Any:
    """A dataclass field with its help text, its range, and the values of paper and release.

    `low`, `high`, `multiple` and `check(value, path)`, which may raise InputError, hold for a
    value or for every member of a list.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "multiple": multiple,
        "check": check,
        "paper": paper,
        "release": release,
    }
    return field(default=default, metadata=metadata)


def help_of(config: type, name: str, *, default: object = None) -> str:
    """The help text of one setting, then `default`, and the paper's and the release's values."""
    metadata = config.__dataclass_fields__[name].metadata  # type: ignore[attr-defined]
    values = {"default": default, "paper": metadata["paper"], "release": metadata["release"]}
    known = "; ".join(f"{who}: {value}" for who, value in values.items() if value is not None)
    if not known:
        return str(metadata["help"])
    return f"{metadata['help']} ({known[0].upper()}{known[1:]}.)"


class Checked:
    """Checks every field against its type and range when an object is made.

    Raises InputError that names the field, what was expected and what came. A list becomes a
    tuple, a whole number a float where a float is due; nothing else is converted.
    """

    def __post_init__(self) -> None:
        kind = type(self)
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _checked_field(kind, f, getattr(self, f.name), f"{kind.__name__}.{f.name}")
            object.__setattr__(self, f.name, value)

    @classmethod
    def read(cls: type[K], value: Any, path: str) -> K:
        """The settings of a JSON object at `path` in its file; raises as the class itself."""
        data = object_of(value, path or cls.__name__)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        refuse_unknown(data, fields, path)
        return cls(
            **{n: _checked_field(cls, fields[n], v, below(path, n)) for n, v in data.items()}
        )


def to_dict(config: Any) -> Any:
    """Settings as plain JSON-ready data."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: to_dict(value) for name, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def from_dict(kind: type[K], data: Any) -> K:
    """Settings made of `to_dict`'s data; what is missing takes its default.

    Raises InputError that names the path of what is unknown, of a wrong type or out of range.
    """
    return kind.read(data, "")


def from_json(text: str | bytes) -> Any:
    """The data of a JSON text; raises InputError for what is none, repeats a key or nests deep."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"This is no JSON: {reason}.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice")
    return data


# -- for a class that reads itself: it has `read(value, path)`, as Checked has --------------------


def object_of(value: Any, path: str) -> dict[str, Any]:
    """A JSON object's fields without its comment; raises InputError for another type."""
    if not isinstance(value, Mapping):
        refuse(path, "an object with named settings", value)
    return {str(name): v for name, v in value.items() if name != COMMENT}


def refuse_unknown(data: Collection[str], known: Collection[str], path: str) -> None:
    """Raise InputError for a name that is not known, with the nearest that is."""
    for name in data:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}."
            raise InputError(f"{below(path, _short(name))}: there is no such setting; {hint}")


def below(path: str, name: str) -> str:
    """The path of a field of what is at `path`."""
    return f"{path}.{name}" if path else name


def refuse(path: str, expected: str, value: Any) -> NoReturn:
    """Raise InputError that says what was expected at a path, and what came."""
    raise InputError(f"{path}: expected {expected}, got {_shown(value)}.")


def checked(hint: Any, value: Any, path: str) -> Any:
    """The value as its type hint wants it; raises InputError that names its path.

    Hints: bool, int, float, str, Literal, a tuple of one kind, classes that read themselves, each
    with None where the hint allows it.
    """
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
        return None if value is None else checked(hint, value, path)
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            refuse(path, f"one of {', '.join(get_args(hint))}", value)
        return value
    if get_origin(hint) is tuple:
        return _checked_list(get_args(hint)[0], value, path)
    if hasattr(hint, "read"):
        return value if isinstance(value, hint) else hint.read(value, path)
    return _SIMPLE[hint](value, path)


def _checked_list(hint: Any, value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        refuse(path, "a list", value)
    members = tuple(checked(hint, member, f"{path}[{i}]") for i, member in enumerate(value))
    if get_origin(hint) is Literal and len(set(members)) < len(members):
        refuse(path, "each of them once", ", ".join(members))
    return members


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        refuse(path, "true or false", value)
    return value


def _whole(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        refuse(path, "a whole number", value)
    return int(value)


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(path, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        refuse(path, "a finite number", value)
    return number


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        refuse(path, "a text", value)
    if len(value) > LONGEST:
        raise InputError(f"{path}: expected at most {LONGEST} characters, got {len(value)}.")
    return value


_SIMPLE: dict[type, Callable[[Any, str], Any]] = {
    bool: _flag,
    int: _whole,
    float: _number,
    str: _text,
}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _checked_field(kind: type, f: dataclasses.Field[Any], value: Any, path: str) -> Any:
    value = checked(_hints(kind)[f.name], value, path)
    if value is None:
        return None
    if isinstance(value, tuple):
        if not value and f.default != ():
            refuse(path, "one or more in the list", value)
        for i, member in enumerate(value):
            _in_range(f.metadata, member, f"{path}[{i}]")
    else:
        _in_range(f.metadata, value, path)
    return value


def _in_range(limits: Mapping[str, Any], value: Any, path: str) -> None:
    low, high, multiple = (limits.get(name) for name in ("low", "high", "multiple"))
    too_low = low is not None and value < low
    too_high = high is not None and value > high
    if too_low or too_high:
        refuse(path, f"at least {low}" if high is None else f"{low} to {high}", value)
    if multiple and value % multiple:
        refuse(path, f"a multiple of {multiple}", value)
    if check := limits.get("check"):
        check(value, path)


def _shown(value: Any) -> str:
    """A value in an error, no longer than a line."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    try:
        return _short(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError):  # no JSON, or a number of thousands of digits
        return f"a value of type {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
