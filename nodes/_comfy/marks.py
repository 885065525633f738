"""Which columns of a CONDITIONING are tokens to hold, carried in its options to the sampler.

There they survive what nodes do to conditioning (areas, masks, ControlNet, combining), and the
sampler tells for each pass of the UNet which conditioning a row comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import node_helpers
import torch
from torch import Tensor

from ...magicapture.config import Role
from ...magicapture.errors import InputError
from ...magicapture.prompts import with_edit
from ...magicapture.refocusing import Focus
from ...magicapture.sampling import EDIT_SHARE
from ...magicapture.tokens import Concept, places
from .prompts import encode_extra

TOKENS = "magicapture_tokens"
"""The option of a CONDITIONING, and of the sampler's transformer_options, that holds them."""


@dataclass(frozen=True)
class Mark:
    """The tokens of one conditioning: where they stand, and which part of the picture it is for.

    length: columns of its own context. area: (height, width, y, x) in latent cells, or None.
    """

    tokens: tuple[Focus, ...]
    length: int
    area: tuple[int, int, int, int] | None

    def for_context(self, total: int) -> tuple[Focus, ...]:
        """The tokens in a context that was repeated to `total` columns."""
        return tuple(token.repeated(self.length, total) for token in self.tokens)

    def part_of(self, region: Tensor, size: tuple[int, int]) -> Tensor:
        """What a region (...,H,W) of the whole picture is in this conditioning's area."""
        _, _, top, left = self.area or (0, 0, 0, 0)
        return region[..., top : top + size[0], left : left + size[1]]


@dataclass(frozen=True, eq=False)
class Marks:
    """The marks of a batch by the uuid of their conditioning, and the latents' size in cells."""

    of: Mapping[Any, Mark]
    size: tuple[int, int]


def encode_marked(
    clip: Any,
    text: str,
    concepts: Sequence[Concept],
    inside: str = "",
    outside: str = "",
    extra: str = "",
    strength: float = EDIT_SHARE,
) -> Any:
    """What CLIPTextEncode makes of a text, with the tokens to hold marked in it.

    concepts: named in the text as `Concept.stock`. inside, outside: further words or embeddings,
    separated by commas, to be held to the region and to the rest. extra: words behind the text,
    with a strength of their own (`encode_extra`). Raises InputError where the text has none of the
    concepts, or not one of the words.
    """
    if clip is None:
        raise InputError("There is no text encoder at the input 'clip'; connect one.")
    roles: tuple[tuple[Role, str], ...] = (("subject", inside), ("style", outside))
    words = [(word, role) for role, listed in roles for word in _split(listed)]

    def found(line: Sequence[Any]) -> list[Focus]:
        tokens = [_concept(clip, line, concept) for concept in concepts]
        tokens += [_word(clip, line, word, role) for word, role in words]
        return [focus for focus in tokens if focus is not None]

    def encode(part: str) -> Any:
        tokens = clip.tokenize(part)
        conditioning = clip.encode_from_tokens_scheduled(tokens)
        # Some encoders leave out their template's first words.
        line = _line(tokens)[-conditioning[0][0].shape[1] :]
        marked = {TOKENS: tuple(found(line))}
        return node_helpers.conditioning_set_values(conditioning, marked)

    whole = clip.tokenize(with_edit(text, extra), **_bare(clip))  # its template says other words
    _require(found(_line(whole)), concepts, words)
    return encode_extra(encode, text, extra, strength)


def _require(
    found: Sequence[Focus], concepts: Sequence[Concept], words: Sequence[tuple[str, Role]]
) -> None:
    names = {focus.name for focus in found}
    if concepts and names.isdisjoint(concept.name for concept in concepts):
        tokens = " or ".join(concept.stock for concept in concepts)
        raise InputError(
            f"The text has no {tokens}. Write the token into it (Write Prompt does), and take CLIP "
            "from Apply Adapter, which knows the token."
        )
    for word, _ in words:
        if word not in names:
            raise InputError(f"The text has no {word!r}; hold words to a region that are in it.")


def marks_in(conds: Sequence[Any], size: tuple[int, int]) -> Marks:
    """The marks of a sampler's conditioning, a list of lists in which None may stand."""
    of = {}
    for cond in marked(conds):
        area = cond.get("area")
        of[cond["uuid"]] = Mark(
            cond[TOKENS],
            cond["model_conds"]["c_crossattn"].cond.shape[1],
            None if area is None else tuple(area),
        )
    return Marks(of, size)


def marked(conds: Sequence[Any]) -> list[dict[str, Any]]:
    """Those of a sampler's conditionings that have tokens to hold."""
    return [cond for group in conds if group for cond in group if cond.get(TOKENS)]


def _concept(clip: Any, line: Sequence[Any], concept: Concept) -> Focus | None:
    said = (concept.stock,) if concept.vectors else concept.spelled.forms
    columns = _standing(clip, line, *said)
    word = _standing(clip, line, concept.class_word) if concept.role == "subject" else ()
    return Focus(concept.name, concept.role, columns, word) if columns else None


def _word(clip: Any, line: Sequence[Any], word: str, role: Role) -> Focus | None:
    columns = _standing(clip, line, word)
    return Focus(word, role, columns) if columns else None


def _standing(clip: Any, line: Sequence[Any], *texts: str) -> tuple[int, ...]:
    """Where texts stand in a line; to a language model a blank belongs to the word behind it."""
    ways = [way for text in texts for way in (text, f" {text}")]
    held = {column for way in ways for column in places(line, _words(clip, way), _same)}
    return tuple(sorted(held))


def _split(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",") if word.strip()]


def _line(tokens: Mapping[str, Sequence[Sequence[Sequence[Any]]]]) -> list[Any]:
    """The tokens of a text in the order of the context's columns, chunk behind chunk."""
    return [token[0] for chunk in _columns(tokens) for token in chunk]


def _words(clip: Any, text: str) -> list[Any]:
    """The tokens of a text alone, without start, end, padding and a language model's template."""
    chunks = _columns(clip.tokenize(text, return_word_ids=True, **_bare(clip)))
    return [token[0] for chunk in chunks for token in chunk if token[2] > 0]


def _bare(clip: Any) -> dict[str, str]:
    """What has a CLIP tokenize a text without a language model's template."""
    return {"llama_template": "{}"} if hasattr(clip.tokenizer, "llama_template") else {}


def _columns(tokens: Mapping[str, Any]) -> Any:
    """The chunks of the text encoder whose output the context's columns are.

    T5's where there is one, as in Flux, to which CLIP tells but one pooled vector; the columns of
    XL's two encoders are the same.
    """
    return tokens.get("t5xxl") or next(iter(tokens.values()))


def _same(a: Any, b: Any) -> bool:
    """Whether two tokens are the same: numbers, or the vectors of embeddings."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)
