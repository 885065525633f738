"""The models that a command has loaded, for the next training of the same process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Latest:
    """Keeps the newest model of each kind: asked for again with the same options, it is there."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[object, Any]] = {}

    def __call__(self, kind: str, wanted: object, make: Callable[[], T]) -> T:
        """The model of a kind; wanted: all that decides which, compared with the last one's."""
        if kind not in self._kept or self._kept[kind][0] != wanted:
            self._kept.pop(kind, None)  # two at a time would not fit
            self._kept[kind] = wanted, make()
        made: T = self._kept[kind][1]
        return made
