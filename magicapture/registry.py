"""Things known by name, to which anyone may add: losses, for example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from .errors import InputError


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


class Registry(Mapping[str, N], Generic[N]):
    """Entries by name, in the order in which they were added.

    kind: what messages call an entry. Looking up a name that there is not raises InputError.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, N] = {}

    def add(self, entry: N) -> N:
        """Add an entry for good; raises InputError for a name that is taken."""
        if entry.name in self._entries:
            raise InputError(f"There is a {self.kind} called {entry.name!r} already.")
        self._entries[entry.name] = entry
        return entry

    @contextmanager
    def added(self, entry: N) -> Iterator[N]:
        """Add an entry for a while."""
        self.add(entry)
        try:
            yield entry
        finally:
            del self._entries[entry.name]

    def __getitem__(self, name: str) -> N:
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(
                f"There is no {self.kind} {name!r}; there are {', '.join(self._entries)}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
