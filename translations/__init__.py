"""What the nodes say, in other languages: one table a language, from which `locales/` is made.

`python -m translations` does it; CONTRIBUTING.md says how to translate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TABLES = Path(__file__).parent
LOCALES = TABLES.parent / "locales"
LANGUAGES = tuple(sorted(file.stem for file in TABLES.glob("*.json")))

Table = dict[str, dict[str, str]]
"""A language's translations: by section, then by the English they stand for."""


class Said(NamedTuple):
    """One English string of the nodes."""

    section: str
    """Where it stands in a table: menu, titles, names or texts."""
    english: str
    place: tuple[str, ...]
    """Where the page looks for it: the file's stem, then the keys."""


def spoken(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[Said]:
    """All that the nodes say, in their order; `nodes` as /object_info gives them, by id."""
    for node_id, node in nodes.items():
        *_, room = node["category"].split("/")
        yield Said("menu", room, ("main", "nodeCategories", room))
        here = ("nodeDefs", node_id)
        yield Said("titles", node["display_name"], (*here, "display_name"))
        if node["description"]:
            yield Said("texts", node["description"], (*here, "description"))
        for name, options in _inputs(node["input"]):
            there = (*here, "inputs", name)
            yield Said("names", options.get("display_name") or name, (*there, "name"))
            if options.get("tooltip"):
                yield Said("texts", options["tooltip"], (*there, "tooltip"))
        tooltips = node["output_tooltips"] or [None] * len(node["output"])
        for index, (name, tooltip) in enumerate(zip(node["output_name"], tooltips, strict=True)):
            there = (*here, "outputs", str(index))
            yield Said("names", name, (*there, "name"))
            if tooltip:
                yield Said("texts", tooltip, (*there, "tooltip"))


def _inputs(groups: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for group in ("required", "optional"):
        for name, (_, *options) in groups.get(group, {}).items():
            yield name, (options[0] if options else {})


def strings(said: Iterable[Said]) -> dict[str, list[str]]:
    """Each English string once, by section, in the nodes' order."""
    found: dict[str, dict[str, None]] = {name: {} for name in ("menu", "titles", "names", "texts")}
    for one in said:
        found[one.section][one.english] = None
    return {section: list(english) for section, english in found.items()}


def files(said: Iterable[Said], table: Table | None = None) -> dict[str, Any]:
    """A language's files, by stem. Without a table they are English.

    What the table does not translate is left out: the page then shows the nodes' own English.
    """
    made: dict[str, Any] = {}
    for section, english, place in said:
        words = english if table is None else table[section].get(english)
        if words:
            *above, last = place
            inner = made
            for key in above:
                inner = inner.setdefault(key, {})
            inner[last] = words
    return made


def read_table(language: str) -> Table:
    """The table of a language."""
    return json.loads((TABLES / f"{language}.json").read_text("utf-8"))


def read_files(language: str) -> dict[str, Any]:
    """A language's files as they lie in `locales/`, by stem."""
    found = sorted((LOCALES / language).glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in found}


def write(file: Path, content: Any) -> None:
    """Writes a file as a reader and a diff like it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
