"""Options of the command line: their values, their help with the default in it, short errors."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from ..config import Checked, help_of
from ..errors import InputError

K = TypeVar("K", bound=Checked)
Group = argparse._ActionsContainer
"""A parser, or a titled group of its options."""

MAX_SEED = 2**32 - 1


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line, without the usage, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"magicapture: error: {message}; see {self.prog} --help\n")


def option(
    group: Group,
    flag: str,
    kind: Callable[[str], Any],
    text: str,
    *,
    default: Any = None,
    shown: str = "",
    **more: Any,
) -> None:
    """Add an option with a value; its help says the default, as `shown` where that is clearer."""
    default_text = shown or ("" if default is None else str(default))
    help = f"{text} (Default: {default_text}.)" if default_text else text
    group.add_argument(flag, type=kind, default=default, help=_escaped(help), **more)


def setting_option(
    group: Group,
    config: type[Checked],
    name: str,
    *,
    prefix: str = "",
    shown: str = "",
    **more: Any,
) -> None:
    """Add the option --prefix-name for a setting: its type, choices, help and default."""
    hint = get_type_hints(config)[name]
    words = [choice for choice in get_args(hint) if isinstance(choice, str)]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind in (int, float, str)]
    default = shown or config.__dataclass_fields__[name].default  # type: ignore[attr-defined]
    if words:
        more["choices"] = words
    group.add_argument(
        f"--{prefix}{name.replace('_', '-')}",
        type=str if words else kinds[0],
        help=_escaped(help_of(config, name, default='""' if default == "" else default)),
        **more,
    )


def settings_from(
    kind: type[K], arguments: argparse.Namespace, names: Sequence[str], prefix: str = ""
) -> K:
    """The settings of `setting_option`'s options; raises InputError that names the option."""
    given = {name: getattr(arguments, f"{prefix}{name}".replace("-", "_")) for name in names}
    try:
        return kind.read({name: value for name, value in given.items() if value is not None}, "")
    except InputError as error:
        name, colon, what = str(error).partition(":")
        raise InputError(f"--{prefix}{name.replace('_', '-')}{colon}{what}") from error


@contextmanager
def naming(flag: str) -> Iterator[None]:
    """Put an option before the text of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error


def _escaped(help: str) -> str:
    return help.replace("%", "%%")


# -- checks of what the settings do not hold --------------------------------------------------


def require_text(flag: str, value: str | None) -> None:
    """Raise InputError for a text that is given and empty."""
    if value is not None and not value.strip():
        raise InputError(f"{flag}: expected a text, got an empty one.")


def require_range(flag: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise InputError for a number out of its range, NaN among them."""
    if not low <= value <= high:
        expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise InputError(f"{flag}: expected {expected}, got {value}.")
