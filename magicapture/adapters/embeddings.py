"""Embedding files: one for each token, as ComfyUI, A1111 and diffusers write and read them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..families import FAMILIES
from ..tokens import check_token_name
from .adapter import Adapter
from .kinds import refuse_others
from .layers import LIMIT
from .metadata import TOKEN, describe
from .reading import AnyPath, read_file

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".bin")
"""The endings that a loader tries for `embedding:name`, in ComfyUI's order."""

_BUNDLE = "bundle_emb."
_KEYS = {encoder.key for family in FAMILIES.values() for encoder in family.encoders}
_BUNDLED = re.compile(
    rf"bundle_emb\.(.+)\.(string_to_param\.\*|emb_params|{'|'.join(sorted(_KEYS))})"
)


@dataclass(frozen=True)
class Embedding:
    """A token read from a file: its vectors (n,width) float32 by encoder, and the file's facts.

    name: the token that the file itself names, else the file's own name.
    """

    name: str
    vectors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def to_embedding(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A token as its file holds it: {"emb_params"}, or the keys of its encoders if it has two."""
    tensors = {e: v.detach().to("cpu", torch.float32) for e, v in vectors.items()}
    return {"emb_params": tensors["clip_l"]} if set(tensors) == {"clip_l"} else tensors


def to_bundle(tokens: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tokens as a LoRA file holds them: "bundle_emb.NAME.KEY", by the keys that A1111 reads.

    KEY is "string_to_param.*", which ComfyUI's embedding loader looks for as well, or one for each
    of two encoders, "clip_l" and "clip_g".
    """
    return {
        f"{_BUNDLE}{name}.{key.replace('emb_params', 'string_to_param.*')}": values
        for name, vectors in tokens.items()
        for key, values in to_embedding(vectors).items()
    }


def embedding_metadata(adapter: Adapter, name: str) -> dict[str, str]:
    """The metadata of one token's file."""
    return {**describe(adapter, name, "textual-inversion"), TOKEN: name}


def read_embedding(path: AnyPath) -> Embedding:
    """Read one token in any common form.

    {"emb_params"}, {"clip_l", "clip_g"}, {"clip_l", "t5xxl"} or one of these, A1111's
    {"string_to_param": {"*"}}, diffusers' {"<token>"}. Raises InputError for other contents,
    StorageError for a damaged file.
    """
    path = Path(path)
    return embedding_in(*read_file(path), path)


def embedding_in(entries: Mapping[str, Any], metadata: Mapping[str, str], path: Path) -> Embedding:
    """One token from a file's contents; forms and errors as for `read_embedding`."""
    refuse_others(entries, path)
    name = path.stem
    if "string_to_param" in entries:
        entries = _a1111(entries)
    if len(entries) > 1 and set(entries) <= _KEYS:
        vectors = dict(entries)
    elif len(entries) == 1:
        ((key, values),) = entries.items()
        vectors = {key if key in _KEYS else "clip_l": values}
        if key.startswith("<") and key.endswith(">"):
            name = key
    else:
        raise InputError(
            f"{path} holds {len(entries)} entries ({_listed(entries)}); expected a LoRA, or an "
            "embedding of one token: emb_params, clip_l with clip_g or t5xxl, or "
            "string_to_param."
        )
    if TOKEN in metadata:
        name = metadata[TOKEN]
        try:
            check_token_name(name)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    else:
        name = usable_name(name, path)
    return Embedding(name, {e: _checked(v, path) for e, v in vectors.items()}, metadata)


def bundled(
    entries: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A LoRA file's own entries, and the tokens bundled with them, by name and encoder.

    Bundles are A1111's (kohya's tools, OneTrainer): "bundle_emb.NAME.KEY" with an embedding file's
    KEY. Raises InputError for a token that cannot be read.
    """
    own: dict[str, Any] = {}
    tokens: dict[str, dict[str, Tensor]] = {}
    for key, value in entries.items():
        match = _BUNDLED.fullmatch(key)
        if not key.startswith(_BUNDLE):
            own[key] = value
        elif match is None:  # such as OneTrainer's vectors for the encoder's output
            logger.warning("%s: %.120s is left out; it is no input of a text encoder.", path, key)
        else:
            of = tokens.setdefault(usable_name(match[1], path), {})
            encoder = match[2] if match[2] in _KEYS else "clip_l"
            if encoder in of:
                raise InputError(f"{path} bundles two tokens that would both be {match[1]!r:.100}.")
            of[encoder] = _checked(value, path)
    return own, tokens


def usable_name(name: str, path: Path) -> str:
    """A token's name from a file, as prompts can hold it.

    What a name of another program cannot have becomes "-"; raises InputError where nothing is left.
    """
    with suppress(InputError):
        check_token_name(name)
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:100]
    try:
        check_token_name(plain)
    except InputError as error:
        raise InputError(
            f"{path} names its token {name!r:.100}, which no prompt can hold; rename the file, or "
            "train the token under another name, such as 'ada-1'."
        ) from error
    if plain != name.removeprefix("<").removesuffix(">"):
        logger.warning("%s: the token %.100r is called %r here.", path, name, plain)
    return plain


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{key:.80}" for key in list(entries)[:3])


def _a1111(entries: Mapping[str, Any]) -> dict[str, Any]:
    values = entries["string_to_param"]
    return {str(key): value for key, value in values.items()} if isinstance(values, Mapping) else {}


def _checked(values: Any, path: Path) -> Tensor:
    """The vectors as (n,width) float32."""
    is_tensor = isinstance(values, Tensor) and values.is_floating_point()
    if not is_tensor or values.ndim not in (1, 2) or not values.numel():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{path} holds {shape}; expected an embedding of shape (n, width).")
    vectors = values.detach().float().reshape(-1, values.shape[-1])
    if not vectors.abs().max() <= LIMIT:  # NaN included
        raise InputError(
            f"{path} holds an embedding with NaN, infinite or too large values (beyond float16's "
            f"{LIMIT:g}), which would turn pictures black; train or download it again."
        )
    return vectors
