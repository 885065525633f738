"""Which columns of a prompt are the tokens that refocusing holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..backbone import Backbone, Conditioning
from ..config import Role
from ..families import FAMILIES
from ..tokens import Concept, Prompt, TokenVectors, places


@dataclass(frozen=True)
class Focus:
    """A token held to a region: a subject's to the region itself, a style's to all but it.

    columns: of the context, where the token's vectors stand or the words that say it. word: those
    of its class word, which help to find the region.
    """

    name: str
    role: Role
    columns: tuple[int, ...]
    word: tuple[int, ...] = ()

    def repeated(self, length: int, total: int) -> Focus:
        """For a context of `length` columns that was repeated to `total`, as ComfyUI pads."""

        def spread(columns: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(c + start for start in range(0, total, length) for c in columns)

        return replace(self, columns=spread(self.columns), word=spread(self.word))


Rows = Sequence[Sequence[Focus]]
"""For each row of a batch, its tokens; none for a negative prompt."""


def foci(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    conditioning: Conditioning,
    vectors: TokenVectors,
    concepts: Sequence[Concept],
) -> list[tuple[Focus, ...]]:
    """The tokens of the prompts that are concepts, by the conditioning they were encoded to."""
    encoder, *_ = FAMILIES[backbone.family].reads

    def word_ids(text: str) -> list[int]:
        return backbone.word_ids(encoder, text)

    rows = []
    for prompt, positions in zip(prompts, conditioning.positions, strict=True):
        line = backbone.layout(encoder, prompt, vectors)
        rows.append(
            tuple(
                Focus(c.name, c.role, tuple(positions[c.name]), _word(c, line.ids, word_ids))
                for c in concepts
                if c.name in positions
            )
        )
    return rows


def _word(
    concept: Concept, ids: Sequence[int], word_ids: Callable[[str], Sequence[int]]
) -> tuple[int, ...]:
    """The class word's columns; a style's word is that of whom it is worn by, so it has none."""
    if concept.role == "style":
        return ()
    # To a language model a blank belongs to the word behind it.
    ways = (concept.class_word, f" {concept.class_word}")
    return tuple(sorted({column for text in ways for column in places(ids, word_ids(text))}))
