"""The translations as far as they can be seen without ComfyUI; `tests/nodes/` holds the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from translations import LANGUAGES, Said, files, read_files, read_table, strings

SECTIONS = {"display_name": "titles", "name": "names", "tooltip": "texts", "description": "texts"}
# What a translation may not lose: numbers, files, folders, settings, names in capitals.
KEPT = re.compile(
    r"embedding:\w+|`[^`]+`|[\w*\[\]-]*\w(?:[./=_][\w*\[\]-]+)+|\.json\b|\bNAME\b|\d+(?:x\d+)?"
)
languages = pytest.mark.parametrize("language", LANGUAGES)


def leaves(words: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in words.items():
        if isinstance(value, str):
            yield (*above, key), value
        else:
            yield from leaves(value, *above, key)


def spoken_in_english() -> list[Said]:
    """What the nodes say, from the English files, which a test in ComfyUI holds to the nodes."""
    return [
        Said("menu" if place[0] == "main" else SECTIONS[place[-1]], english, place)
        for place, english in leaves(read_files("en"))
    ]


def test_the_languages_of_the_issue_are_there() -> None:
    assert {"ja", "ko", "zh"} <= set(LANGUAGES)


@languages
def test_a_table_translates_what_the_nodes_say_and_nothing_else(language: str) -> None:
    table = read_table(language)
    assert {section: list(words) for section, words in table.items()} == strings(
        spoken_in_english()
    ), "run `python -m translations`"
    lacking = [english for words in table.values() for english in words if not words[english]]
    assert not lacking


@languages
def test_the_files_are_made_from_the_table(language: str) -> None:
    made = files(spoken_in_english(), read_table(language))
    assert made == read_files(language), "run `python -m translations`"


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_page_shows_the_words_as_they_stand(language: str) -> None:
    """These are signs of its message format: `|` parts plurals, `{}` is filled in, `@` links."""
    odd = [words for _, words in leaves(read_files(language)) if re.search(r"[{}@|]", words)]
    assert not odd


@languages
def test_texts_are_translated_and_keep_what_is_typed(language: str) -> None:
    table = read_table(language)
    wrong = []
    for english, own in table["texts"].items():
        # An input is spoken of by the name that the page shows.
        typed = [table["names"].get(word, word) for word in KEPT.findall(english)]
        wrong += [f"{word!r} is not in {own!r}" for word in typed if word not in own]
        if own == english:
            wrong.append(f"not translated: {own!r}")
    assert not wrong, "\n".join(wrong)


@languages
def test_texts_name_the_nodes_as_they_are_titled(language: str) -> None:
    table = read_table(language)
    titles = table["titles"]
    known = re.compile("|".join(sorted(map(re.escape, titles), key=len, reverse=True)))
    wrong = [
        f"{titles[title]!r} is not in {own!r}"
        for english, own in table["texts"].items()
        for title in known.findall(english)
        if titles[title] not in own
    ]
    assert not wrong, "\n".join(wrong)


@languages
def test_titles_are_short_and_differ(language: str) -> None:
    titles = read_table(language)["titles"]
    assert len(set(titles.values())) == len(titles)
    assert max(map(len, titles.values())) <= max(map(len, titles))
