"""Sentences of a recipe: text in which {subject}, {style} and {noun} are filled in, nothing else.

A recipe may come from a stranger's file, so a sentence is never a format string.
"""

from __future__ import annotations

import re

from .errors import InputError

LONGEST = 500
"""Most characters of a sentence; a text encoder reads about 300."""

_FIELD = re.compile(r"\{(subject|style|noun)\}")
_TOKEN = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_-]*>")


def check_sentence(
    sentence: str, path: str, holds: tuple[str, ...] = (), lacks: tuple[str, ...] = ()
) -> None:
    """Raise InputError for a sentence that cannot be filled in or lacks a token of its task.

    holds, lacks: the fields it must have, and must not have, of subject and style.
    """
    shown = sentence if len(sentence) <= 80 else sentence[:77] + "..."
    if not sentence.strip():
        raise InputError(f"{path}: the sentence is empty; write one, or take it away.")
    if len(sentence) > LONGEST:
        raise InputError(
            f"{path}: the sentence has {len(sentence)} characters; expected at most {LONGEST}."
        )
    if re.search(r"[{}]", _FIELD.sub("", sentence)):
        raise InputError(
            f'{path}: only {{subject}}, {{style}} and {{noun}} may stand in braces, got "{shown}".'
        )
    if _TOKEN.search(sentence):
        raise InputError(
            f'{path}: write {{subject}} or {{style}} instead of a token\'s name, got "{shown}".'
        )
    fields = set(_FIELD.findall(sentence))
    for field in holds:
        if field not in fields:
            raise InputError(f'{path}: expected {{{field}}} in the sentence, got "{shown}".')
    for field in lacks:
        if field in fields:
            raise InputError(f'{path}: expected no {{{field}}} in the sentence, got "{shown}".')


def fill(sentence: str, **values: str) -> str:
    """The sentence with the values of its fields; braces in a value stay as they are."""
    return _FIELD.sub(lambda match: values[match[1]], sentence)
