"""Concepts, the trainable vectors of their tokens, and prompts that hold them.

A prompt writes a token as its name in angle brackets, "a photo of a <ada> woman". Each text
encoder sees `layout(...)`: its usual ids, with slots where the token's vectors are spliced in.
Only these vectors train; no ordinary word moves. A concept without vectors in an encoder is
spelled there, by the ordinary words of its phrase, and the LoRA alone carries it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import eq
from textwrap import shorten
from typing import Any, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn

from .config import Role
from .errors import InputError
from .files import safe_name

LONGEST_PROMPT = 5000
"""Most characters of a prompt; more would only cost time, since no text encoder reads so far."""

LONGEST_WORD = 60
"""Most characters of a class word or a phrase, each of which may have several words."""

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
class Phrase:
    """The ordinary words that say a concept where a text encoder has no vectors for it.

    noun: the word that prompts have behind them, "woman" or "style".
    """

    words: str
    noun: str

    @property
    def forms(self) -> tuple[str, str]:
        """The words whose columns are the concept's: the phrase, also with the noun right after.

        In a causal text encoder a later word carries what those before it said, so that the noun
        of "ada woman" says ada as well; words further on say too much else.
        """
        return self.words, f"{self.words} {self.noun}"

    def end_in(self, text: str, start: int) -> int:
        """Where the longest of its forms ends that begins in a text at `start`."""
        patterns = (r"\s+".join(map(re.escape, form.split())) for form in self.forms)
        found = [re.compile(rf"{p}(?!\w)", re.IGNORECASE).match(text, start) for p in patterns]
        return max((match.end() for match in found if match), default=start + len(self.words))


T = TypeVar("T")

Written: TypeAlias = int | Phrase
"""How a token stands in a prompt for one text encoder: as so many vectors, or as its phrase."""


@dataclass(frozen=True)
class Concept:
    """One thing to learn: a token for the person (subject) or for the look (style).

    name: the token's name, also its file's; letters, digits, "-" and "_", as `check_token_name`.
    class_word: the ordinary noun beside it in prompts ("person", "woman", "dog").
    vectors: how many vectors the token has, 1 to 16; 0 spells it in prompts by its phrase.
    init: the word whose embedding the vectors start from, or "random"; None takes the class word
        for a subject and random vectors for a style.
    phrase: the ordinary words of a concept without vectors; None takes its name.
    """

    name: str
    role: Role
    class_word: str = "person"
    vectors: int = 1
    init: str | None = None
    phrase: str | None = None

    def __post_init__(self) -> None:
        check_token_name(self.name)
        if self.role not in get_args(Role):
            raise InputError(
                f"The token {self.name!r} has the role {self.role!r:.100}; expected "
                f"{' or '.join(get_args(Role))}."
            )
        if type(self.vectors) is not int or not 0 <= self.vectors <= 16:
            raise InputError(
                f"The token {self.name!r} has {self.vectors!r:.100} vectors; use 1 to 16, or 0 to "
                "say it by the ordinary words of its phrase."
            )
        if not isinstance(self.class_word, str) or not self.class_word.strip():
            raise InputError(
                f"The token {self.name!r} has no class word; give the ordinary noun for what it "
                "shows, such as 'person', 'woman' or 'dog'."
            )
        if not _is_ordinary(self.class_word):
            raise InputError(
                f"The class word of {self.name!r} is {self.class_word!r:.100}; expected an "
                "ordinary noun such as 'person', 'woman' or 'dog', no token and no sentence."
            )
        if not isinstance(self.init, str | None):
            raise InputError(
                f"The token {self.name!r} starts from {self.init!r:.100}; expected a word, "
                "'random' or None."
            )
        self._check_phrase()

    def _check_phrase(self) -> None:
        known = self.phrase is None or (
            isinstance(self.phrase, str)
            and any(map(str.isalnum, self.phrase))
            and _is_ordinary(self.phrase)
        )
        if not known:
            raise InputError(
                f"The phrase of {self.name!r} is {self.phrase!r:.100}; expected ordinary words "
                f"without brackets, of at most {LONGEST_WORD} characters, such as 'ada lovel'."
            )
        if not self.vectors and _plain(self.spelled.words) == _plain(self.class_word):
            raise InputError(
                f"The phrase of {self.name!r} is its class word {self.class_word!r}, so that every "
                f"{self.class_word} would be it; give a rare word or a name, such as 'ada lovel'."
            )

    @property
    def token(self) -> str:
        """The token as a prompt writes it."""
        return f"<{self.name}>"

    @property
    def spelled(self) -> Phrase:
        """What it is called where it has no vectors."""
        words = " ".join((self.phrase or self.name).split())
        return Phrase(words, self.class_word if self.role == "subject" else "style")

    @property
    def stock(self) -> str:
        """The token as prompts of any other program write it: embedding:ada, or its phrase."""
        return f"embedding:{self.name}" if self.vectors else self.spelled.words

    def marked(self, text: str) -> str:
        """A text with the token where it says a concept without vectors in plain words."""
        if self.vectors:
            return text
        words = r"\s+".join(map(re.escape, self.spelled.words.split()))
        return re.sub(rf"(?<![\w<]){words}(?![\w>])", self.token, text, flags=re.IGNORECASE)

    def is_named_in(self, text: str) -> bool:
        """Whether a text says it, by its token or in plain words."""
        return self.token in self.marked(text)

    def facts(self) -> dict[str, Any]:
        """Its fields for files; without a phrase as before there were phrases."""
        return {k: v for k, v in asdict(self).items() if k != "phrase" or v is not None}

    def region(self, face: Tensor) -> Tensor:
        """The part of a picture that shows it (P's M_v), from the face's mask in 0..1.

        The face for a subject, everything else for a style.
        """
        return face if self.role == "subject" else 1 - face


def _is_ordinary(words: str) -> bool:
    """Whether a class word or a phrase can stand in any prompt as it is."""
    signs = set(words) & set("<>{}[]()\n\r")
    return not signs and "embedding:" not in words.lower() and len(words) <= LONGEST_WORD


def _plain(words: str) -> str:
    return " ".join(words.casefold().split())


@dataclass(frozen=True)
class Words:
    """Ordinary words of a prompt; phrases: what of them says a concept, and where that begins."""

    text: str
    phrases: tuple[tuple[int, str], ...] = ()


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
        return [(text, is_token) for text, is_token in parts if text]

    def runs(self, written: Mapping[str, Written]) -> list[Words | str]:
        """Split into the names of tokens that have vectors, and all the words between them.

        Phrases are spelled out, so that an encoder cuts each stretch of words as a whole.
        """
        runs: list[Words | str] = [Words("")]
        for piece, is_token in self.pieces(written):
            how = written[piece] if is_token else piece
            if isinstance(how, int):
                runs += [piece, Words("")]
                continue
            words = runs[-1]
            assert isinstance(words, Words)
            text, phrases = words.text, words.phrases
            if isinstance(how, Phrase):
                phrases, how = (*phrases, (len(text), piece)), how.words
            runs[-1] = Words(text + how, phrases)
        return [run for run in runs if isinstance(run, str) or run.text.strip()]


def token_names(text: str) -> set[str]:
    """Every `<name>` in a text, known or not."""
    return set(_TOKEN.findall(text))


@dataclass(frozen=True)
class Layout:
    """A prompt as one text encoder sees it: `ids` (L), with the tokens' slots and columns.

    `slots` maps a position to (token name, vector's index); the id there is a filler to be
    overwritten by the vector. `columns` are each token's columns of the context, in order: those of
    its slots, or of the words that say it (`Phrase.forms`). The context lacks the first `head` ids.
    """

    ids: tuple[int, ...]
    slots: Mapping[int, tuple[str, int]]
    columns: Mapping[str, Sequence[int]]
    head: int = 0

    @property
    def read(self) -> tuple[int, ...]:
        """The ids of the context's columns."""
        return self.ids[self.head :]


def layout(
    prompt: Prompt,
    written: Mapping[str, Written],
    word_ids: Callable[[str], Sequence[int]],
    *,
    before: Sequence[int],
    after: Sequence[int],
    pad: int | None,
    length: int,
    headless: bool = False,
) -> Layout:
    """Lay a prompt out for one text encoder.

    written: each token by name, as so many vectors or as its phrase; word_ids: text -> ids of its
    words alone; before, after: the ids around them, such as CLIP's start and end; pad: the id that
    fills what is left of `length`, 77 for CLIP; None leaves a text as long as it is. headless:
    whether the context lacks `before`. A prompt too long loses its last words; raises InputError
    when a token would be among them.
    """
    ids = [*before]
    last = length - len(after)  # from here on stands `after`
    filler = (*before, pad or 0)[0]  # `after` would move SDXL's pooled output here
    slots: dict[int, tuple[str, int]] = {}
    columns: dict[str, list[int]] = {}
    for run in prompt.runs(written):
        at = len(ids)
        if isinstance(run, Words):
            ids.extend(word_ids(run.text.strip()))
            for name, places in _phrase_places(run, written, word_ids):
                columns.setdefault(name, []).extend(at + place for place in places)
            continue
        count = written[run]
        assert isinstance(count, int)
        slots.update({at + index: (run, index) for index in range(count)})
        columns.setdefault(run, []).extend(range(at, at + count))
        ids.extend([filler] * count)
    if any(max(of) >= last for of in columns.values()):
        shown = shorten(prompt.text, 80, placeholder=" ...")
        own, read = len(ids) - len(before), last - len(before)
        raise InputError(
            f"The prompt {shown!r} has {own} tokens, and one of the learned ones comes after the "
            f"{read} that the text encoder reads; shorten it or move the token forward."
        )
    ids = [*ids[:last], *after]
    padding = [] if pad is None else [pad] * (length - len(ids))
    head = len(before) if headless else 0
    columns = {name: [column - head for column in of] for name, of in columns.items()}
    return Layout((*ids, *padding), slots, columns, head)


def filled_up(
    rows: Sequence[Sequence[T]], pad: T, further: int = 0
) -> tuple[list[list[T]], list[list[int]]]:
    """Rows brought to the longest one's length by `pad` behind them; 1 where a row is its own.

    further: how many more behind the longest as well.
    """
    longest = max(map(len, rows)) + further
    more = [longest - len(row) for row in rows]
    return (
        [[*row, *[pad] * n] for row, n in zip(rows, more, strict=True)],
        [[1] * len(row) + [0] * n for row, n in zip(rows, more, strict=True)],
    )


def _phrase_places(
    words: Words, written: Mapping[str, Written], word_ids: Callable[[str], Sequence[int]]
) -> Iterator[tuple[str, range]]:
    """Each phrase in a run of words by name, and its places among the run's ids.

    They are counted by what comes before, as an encoder may cut a word by its neighbours.
    """

    def count(text: str) -> int:
        return len(word_ids(text.strip())) if text.strip() else 0

    for start, name in words.phrases:
        phrase = written[name]
        assert isinstance(phrase, Phrase)
        first = count(words.text[:start])
        end = count(words.text[: phrase.end_in(words.text, start)])
        yield name, range(first, max(end, first + 1))


class TokenVectors(nn.Module):
    """The trainable vectors of some tokens: for each name and text encoder, (n,width) float32.

    phrases: what a token is called in encoders that have no vectors for it.
    """

    def __init__(
        self,
        vectors: Mapping[str, Mapping[str, Tensor]],
        phrases: Mapping[str, Phrase] | None = None,
    ) -> None:
        super().__init__()
        self.phrases = dict(phrases or {})
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

    def written(self, encoder: str) -> dict[str, Written]:
        """How each token stands in a prompt for one encoder: how many vectors, or its phrase."""
        counts = {
            name: len(of[encoder])  # type: ignore[index, arg-type]
            for name, of in self.tokens.items()
            if encoder in of  # type: ignore[operator]
        }
        return {**self.phrases, **counts}

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
    """The vectors (n,width) that a token starts from, by encoder; n is 1 or more.

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

    Programs that name embeddings by the bare word would then change what the word means. A phrase
    is of ordinary words in any case.
    """
    for encoder in encoders if concept.vectors else ():
        if len(word_ids(encoder, concept.name)) == 1:
            raise InputError(
                f"The token name {concept.name!r} is already a word of the text encoder; choose "
                f"one that is not, such as {concept.name + '-1'!r}."
            )
