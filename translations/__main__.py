"""Brings the tables and `locales/` up to date with the nodes: `python -m translations`.

It needs a ComfyUI (COMFYUI_PATH), lists what lacks a translation, and then fails. A string that
the nodes no longer say leaves the tables and is listed with its translation, to be used again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import LANGUAGES, LOCALES, TABLES, Said, Table, files, read_table, spoken, strings, write

PACK = "magicapture_pack"  # neither "magicapture", the core, nor anything of ComfyUI's


def nodes_of(comfyui: Path, base: str) -> dict[str, Any]:
    """What ComfyUI tells of the pack's nodes, by id; its own folders are made in `base`."""
    sys.argv = ["main.py", "--cpu", "--base-directory", base]
    sys.path.insert(0, str(comfyui))
    importlib.import_module("comfy.options").enable_args_parsing()
    for name in ("utils.extra_config", "utils.install_util", "nodes"):
        importlib.import_module(name)  # in this order: nodes puts comfy/, with its utils, first
    spec = importlib.util.spec_from_file_location(PACK, TABLES.parent / "__init__.py")
    assert spec and spec.loader
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
    nodes = importlib.import_module(f"{PACK}.nodes").NODES
    return {node.define_schema().node_id: node.GET_NODE_INFO_V1() for node in nodes}


def brought_up_to_date(old: Table, said: list[Said]) -> tuple[Table, list[str]]:
    """The table in the nodes' order, with "" for what is new; and what to tell of it."""
    new = {
        section: {english: old.get(section, {}).get(english, "") for english in all_english}
        for section, all_english in strings(said).items()
    }
    return new, [*_lacking(new), *_left_over(old, new)]


def _lacking(table: Table) -> Iterator[str]:
    for section, words in table.items():
        yield from (f"lacks {section}: {_line(en)}" for en, own in words.items() if not own)


def _left_over(old: Table, new: Table) -> Iterator[str]:
    for section, words in old.items():
        gone = [en for en in words if en not in new.get(section, {})]
        yield from (f"no longer said: {_line(en)}: {_line(words[en])}" for en in gone)


def _line(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)


def main() -> None:
    """Writes the tables and `locales/`; ends with 1 where a translation lacks."""
    if not (comfyui := os.environ.get("COMFYUI_PATH")):
        sys.exit("python -m translations reads the nodes: set COMFYUI_PATH to a ComfyUI's folder")
    with tempfile.TemporaryDirectory() as base:
        said = list(spoken(nodes_of(Path(comfyui).resolve(), base)))
    told = []
    made = {"en": files(said)}
    for language in LANGUAGES:
        table, news = brought_up_to_date(read_table(language), said)
        write(TABLES / f"{language}.json", table)
        made[language] = files(said, table)
        told += [f"{language} {line}" for line in news]
    for language, contents in made.items():
        for stem, content in contents.items():
            write(LOCALES / language / f"{stem}.json", content)
    sys.stdout.write("".join(f"{line}\n" for line in told))
    sys.exit(1 if any(" lacks " in line for line in told) else 0)


if __name__ == "__main__":
    main()
