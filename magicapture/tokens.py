"""Concepts, the trainable vectors of their tokens, and prompts that hold them.

A prompt writes a token as its name in angle brackets, "a photo of a <ada> woman". Each text
encoder sees `layout(...)`: its usual ids, with slots where the token's vectors are spliced in.
Only these vectors train; no ordinary word moves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from textwrap import shorten
from typing import Any, get_args

import torch
from torch import Tensor, nn

from .config import Role
from .errors import InputError
from .files import safe_name

LONGEST_PROMPT = 5000
"""Most characters of a prompt; more would only cost time, since no text encoder reads so far."""

LONGEST_WORD = 60
"""Most characters of a class word; it may have several words, such as "border collie"."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TOKEN = re.compile(r"<([A-Za-z0-9][A-Za-z0-9_-]*)>")


def check_token_name(name: str) -> None:
    """Raise InputError for a name that no token can have: prompts and files are named by it."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"The token name {name!r:.100} cannot be used: expected letters, digits, '-' and '_', "
            "starting with a letter or digit, as in 'ada-1'."
        )
    safe_name(name, "token name")
    if hasattr(nn.ModuleDict(), name):  # `TokenVectors` keeps tokens by name in one
        raise InputError(
            f"The token name {name!r} is reserved; choose another, such as '{name}-1'."
        )


@dataclass(frozen=True)
class Concept:
    """One thing to learn: a token for the person (subject) or for the look (style).

    name: the token's name, also its file's; letters, digits, "-" and "_", as `check_token_name`.
    class_word: the ordinary noun beside it in prompts ("person", "woman", "dog").
    vectors: how many vectors the token has, 1 to 16.
    init: the word whose embedding the vectors start from, or "random"; None takes the class word
        for a subject and random vectors for a style.
    """

    name: str
    role: Role
    class_word: str = "person"
    vectors: int = 1
    init: str | None = None

    def __post_init__(self) -> None:
        check_token_name(self.name)
        if self.role not in get_args(Role):
            raise InputError(
                f"The token {self.name!r} has the role {self.role!r:.100}; expected "
                f"{' or '.join(get_args(Role))}."
            )
        if type(self.vectors) is not int or not 1 <= self.vectors <= 16:
            raise InputError(
                f"The token {self.name!r} has {self.vectors!r:.100} vectors; use 1 to 16."
            )
        if not isinstance(self.class_word, str) or not self.class_word.strip():
            raise InputError(
                f"The token {self.name!r} has no class word; give the ordinary noun for what it "
                "shows, such as 'person', 'woman' or 'dog'."
            )
        if set(self.class_word) & set("<>{}[]()\n\r") or len(self.class_word) > LONGEST_WORD:
            raise InputError(
                f"The class word of {self.name!r} is {self.class_word!r:.100}; expected an "
                "ordinary noun such as 'person', 'woman' or 'dog', no token and no sentence."
            )
        if not isinstance(self.init, str | None):
            raise InputError(
                f"The token {self.name!r} starts from {self.init!r:.100}; expected a word, "
                "'random' or None."
            )

    @property
    def token(self) -> str:
        """The token as a prompt writes it."""
        return f"<{self.name}>"

    def region(self, face: Tensor) -> Tensor:
        """The part of a picture that shows it (P's M_v), from the face's mask in 0..1.

        The face for a subject, everything else for a style.
        """
        return face if self.role == "subject" else 1 - face


@dataclass(frozen=True)
class Prompt:
    """A text in which `<name>` stands for a token's vectors; at most LONGEST_PROMPT characters."""

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST_PROMPT:
            raise InputError(
                f"The prompt {self.text[:60]!r}... has {len(self.text)} characters; expected at "
                f"most {LONGEST_PROMPT}, and a text encoder reads about 300. Shorten it."
            )

    def pieces(self, names: Iterable[str]) -> list[tuple[str, bool]]:
        """Split into (text, False) and (name, True) parts; an unknown `<name>` stays text."""
        known, parts, start = set(names), [], 0
        for match in _TOKEN.finditer(self.text):
            if match[1] not in known:
                continue
            parts.append((self.text[start : match.start()], False))
            parts.append((match[1], True))
            start = match.end()
        parts.append((self.text[start:], False))
        return [(text, is_token) for text, is_token in parts if is_token or text.strip()]


def token_names(text: str) -> set[str]:
    """Every `<name>` in a text, known or not."""
    return set(_TOKEN.findall(text))


@dataclass(frozen=True)
class Layout:
    """A prompt as one text encoder sees it: `ids` (length L) and the slots of the tokens.

    `slots` maps a position to (token name, vector's index); the id there is a filler to be
    overwritten by the vector.
    """

    ids: tuple[int, ...]
    slots: Mapping[int, tuple[str, int]]

    def positions(self) -> dict[str, list[int]]:
        """The columns of each token, in order."""
        columns: dict[str, list[int]] = {}
        for position, (name, _) in sorted(self.slots.items()):
            columns.setdefault(name, []).append(position)
        return columns


def layout(
    prompt: Prompt,
    counts: Mapping[str, int],
    word_ids: Callable[[str], Sequence[int]],
    *,
    start: int | None,
    end: int,
    pad: int,
    length: int,
) -> Layout:
    """Lay a prompt out for one text encoder.

    counts: vectors of each token by name; word_ids: text -> ids without start and end; start: the
    id before the first word, None for an encoder that has none (T5); length: of the sequence, 77
    for CLIP. A prompt too long loses its last words; raises InputError when a token would be
    among them.
    """
    ids = [] if start is None else [start]
    before, last = len(ids), length - 1  # what stands at `last` is `end`
    filler = pad if start is None else start  # `end` would move SDXL's pooled output here
    slots: dict[int, tuple[str, int]] = {}
    for piece, is_token in prompt.pieces(counts):
        if is_token:
            for index in range(counts[piece]):
                slots[len(ids)] = (piece, index)
                ids.append(filler)
        else:
            ids.extend(word_ids(piece.strip()))
    if slots and max(slots) >= last:
        shown = shorten(prompt.text, 80, placeholder=" ...")
        raise InputError(
            f"The prompt {shown!r} has {len(ids) - before} tokens, and one of the learned ones "
            f"comes after the {last - before} that the text encoder reads; shorten it or move the "
            "token forward."
        )
    ids = [*ids[:last], end]
    return Layout(tuple(ids + [pad] * (length - len(ids))), slots)


class TokenVectors(nn.Module):
    """The trainable vectors of some tokens: for each name and text encoder, (n,width) float32."""

    def __init__(self, vectors: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.tokens = nn.ModuleDict(
            {
                name: nn.ParameterDict(
                    {encoder: nn.Parameter(v.detach().float().clone()) for encoder, v in of.items()}
                )
                for name, of in vectors.items()
            }
        )

    def get(self, name: str, encoder: str) -> Tensor:
        """The vectors (n,width) of one token for one encoder."""
        return self.tokens[name][encoder]  # type: ignore[index]

    @property
    def counts(self) -> dict[str, int]:
        """How many vectors each token has."""
        return {
            name: len(next(iter(of.values())))  # type: ignore[operator]
            for name, of in self.tokens.items()
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Detached copies on the CPU, by name and encoder."""
        return {
            name: {e: v.detach().float().cpu().clone() for e, v in of.items()}  # type: ignore[operator]
            for name, of in self.tokens.items()
        }


def places(
    ids: Sequence[Any], word: Sequence[Any], equal: Callable[[Any, Any], bool] = eq
) -> tuple[int, ...]:
    """The positions that every occurrence of `word` takes up in `ids`; none for an empty word.

    equal: whether two ids are the same, for those of which some are tensors.
    """
    size = len(word)
    starts = (i for i in range(len(ids) - size + 1) if all(map(equal, ids[i : i + size], word)))
    return tuple(start + i for start in starts for i in range(size))


def splice(
    embeddings: Tensor, layouts: Sequence[Layout], vectors: TokenVectors, encoder: str
) -> Tensor:
    """Put the tokens' vectors into the slots of input embeddings (B,L,width); differentiable."""
    rows = [b for b, layout_ in enumerate(layouts) for _ in layout_.slots]
    if not rows:
        return embeddings
    columns = [position for layout_ in layouts for position in layout_.slots]
    values = torch.stack(
        [
            vectors.get(name, encoder)[index]
            for layout_ in layouts
            for name, index in layout_.slots.values()
        ]
    )
    where = (
        torch.tensor(rows, device=embeddings.device),
        torch.tensor(columns, device=embeddings.device),
    )
    return embeddings.index_put(where, values.to(embeddings))


def initial_vectors(
    concept: Concept,
    encoders: Iterable[str],
    word_vectors: Callable[[str, str], Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The vectors (n,width) that a token starts from, by encoder.

    A word's embeddings are repeated as needed, each repetition with a little noise so that the
    vectors can part; random vectors have the norm of the class word's.
    """
    random = concept.init == "random" or (concept.init is None and concept.role == "style")
    word = concept.class_word if random or concept.init is None else concept.init
    vectors = {}
    for encoder in encoders:
        known = word_vectors(encoder, word).detach().float().cpu()[-concept.vectors :]
        if not len(known):
            raise InputError(f"The text encoder knows no tokens for {word!r}; give another word.")
        noise = torch.randn(concept.vectors, known.shape[1], generator=generator)
        noise = noise / noise.norm(dim=1, keepdim=True) * known.norm(dim=1).mean()
        if random:
            vectors[encoder] = noise
            continue
        repeats = -(-concept.vectors // len(known))
        start = known.repeat(repeats, 1)[: concept.vectors]
        fresh = torch.arange(concept.vectors)[:, None] >= len(known)
        vectors[encoder] = torch.where(fresh, start + 0.1 * noise, start)
    return vectors


def check_new_word(
    concept: Concept, encoders: Iterable[str], word_ids: Callable[[str, str], Sequence[int]]
) -> None:
    """Raise InputError when a text encoder has the token's name as a word of its own.

    Programs that name embeddings by the bare word would then change what the word means.
    """
    for encoder in encoders:
        if len(word_ids(encoder, concept.name)) == 1:
            raise InputError(
                f"The token name {concept.name!r} is already a word of the text encoder; choose "
                f"one that is not, such as {concept.name + '-1'!r}."
            )
