"""Which columns of a prompt are the tokens that refocusing holds."""

from __future__ import annotations

from collections.abc import Sequence
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

    def focus(concept: Concept, prompt: Prompt, columns: Sequence[int]) -> Focus:
        word: tuple[int, ...] = ()
        if concept.role == "subject":  # a style's class word is that of whom it is worn by
            word = word_columns(backbone, prompt, vectors, concept.class_word)
        return Focus(concept.name, concept.role, tuple(columns), word)

    return [
        tuple(focus(c, prompt, positions[c.name]) for c in concepts if c.name in positions)
        for prompt, positions in zip(prompts, conditioning.positions, strict=True)
    ]


def word_columns(
    backbone: Backbone, prompt: Prompt, vectors: TokenVectors, word: str
) -> tuple[int, ...]:
    """The columns that every occurrence of an ordinary word has in a prompt; none where it lacks.

    vectors: of the tokens that the prompt may hold.
    """
    encoder, *_ = FAMILIES[backbone.family].reads
    ids = backbone.layout(encoder, prompt, vectors).read
    ways = (word, f" {word}")  # to a language model a blank belongs to the word behind it
    found = (places(ids, backbone.word_ids(encoder, text)) for text in ways)
    return tuple(sorted({column for columns in found for column in columns}))
