"""An adapter put on MODEL and CLIP, so that stock nodes use it without any file."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...magicapture.errors import InputError
from .models import ENCODERS, context_width, family_of, text_encoder_of

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)(.*)", re.DOTALL)


def apply_adapter(
    model: ModelPatcher,
    clip: Any,
    lora: Mapping[str, Tensor],
    tokens: Mapping[str, Mapping[str, Tensor]],
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
) -> tuple[ModelPatcher, Any]:
    """MODEL and CLIP with a LoRA, and with tokens that stock prompts find.

    lora: a state dict in kohya's form. tokens: vectors (n,width) by token name and encoder;
    `embedding:<name>` in a prompt finds them before any file of that name. What came in stays as
    it was. Raises UnsupportedModelError or InputError where `ComfyBackbone` would, and InputError
    for vectors of another width.
    """
    family_of(model)
    text_encoder_of(clip, context_width(model))
    model, clip = comfy.sd.load_lora_for_models(
        model, clip, dict(lora), strength_model, strength_clip
    )
    if tokens:
        clip.tokenizer = _knowing(clip.tokenizer, tokens)
    return model, clip


def _knowing(tokenizer: Any, tokens: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """A copy of a CLIP's tokenizer whose encoders' tokenizers resolve the tokens."""
    tokenizer = copy.copy(tokenizer)
    for own_name, encoder in ENCODERS.items():
        if not hasattr(tokenizer, own_name):
            continue
        part = copy.copy(getattr(tokenizer, own_name))
        vectors = {name: of[encoder] for name, of in tokens.items() if encoder in of}
        _check_widths(vectors, part.embedding_size)
        if part.embedding_directory is None:
            part.embedding_directory = []  # else the tokenizer looks for no embeddings at all
        part._try_get_embedding = _resolver(part._try_get_embedding, vectors)
        setattr(tokenizer, own_name, part)
    return tokenizer


def _check_widths(vectors: Mapping[str, Tensor], width: int) -> None:
    for name, values in vectors.items():
        if values.shape[-1] != width:
            raise InputError(
                f"The token {name!r} has vectors of width {values.shape[-1]}, but this CLIP's are "
                f"{width} wide: the adapter was trained for another kind of base model."
            )


def _resolver(
    resolve_file: Callable[[str], tuple[Any, ...]], vectors: Mapping[str, Tensor]
) -> Callable[[str], tuple[Any, ...]]:
    """`_try_get_embedding` for what follows "embedding:", with our tokens before the files."""
    # 0.3.64 returns (embedding, rest of the text), later versions (embedding, name, rest).
    with_name = len(resolve_file("-")) == 3

    def resolve(text: str) -> tuple[Any, ...]:
        match = _NAME.match(text)
        if match is None or match[1] not in vectors:
            return resolve_file(text)
        name, rest = match[1], match[2].strip()
        return (vectors[name], name, rest) if with_name else (vectors[name], rest)

    return resolve
