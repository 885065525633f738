"""An adapter put on MODEL and CLIP, so that stock nodes use it without any file."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import comfy.lora
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...magicapture.adapters import Adapter, check_strength, to_lora
from ...magicapture.errors import InputError
from .models import ENCODERS, family_of, text_parts_of, tokenizer_name

_SIDES = {".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight"}
"""The ends of an update's two halves, in kohya's files and in diffusers'."""
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)(.*)", re.DOTALL)


def apply_adapter(
    model: ModelPatcher,
    clip: Any,
    adapter: Adapter,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
) -> tuple[ModelPatcher, Any]:
    """MODEL and CLIP with the adapter's LoRA, and with its tokens, which stock prompts find.

    `embedding:<name>` in a prompt finds them before any file of that name. What came in stays as
    it was. Raises UnsupportedModelError or InputError where `ComfyBackbone` would, and InputError
    for a strength that is no sane number, and for a model of another family or of other sizes.
    """
    check_strength(strength_model)
    check_strength(strength_clip)
    adapter.check_family(family_of(model))
    text_parts_of(clip, model)
    lora = to_lora(adapter)
    _check_layers(lora, model, clip)
    model, clip = comfy.sd.load_lora_for_models(model, clip, lora, strength_model, strength_clip)
    if adapter.tokens:
        clip.tokenizer = _knowing(clip.tokenizer, adapter.tokens)
    return model, clip


def _check_layers(lora: Mapping[str, Tensor], model: ModelPatcher, clip: Any) -> None:
    """Raise InputError where the models lack a layer; stock code would only log it."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    shapes = {
        name: tuple(value.shape[:2])
        for part in (model.model, clip.cond_stage_model)
        for name, value in part.state_dict().items()
        if value.ndim >= 2
    }
    for key, up in lora.items():
        end = next(filter(key.endswith, _SIDES), None)
        if end is None:
            continue
        layer = key.removesuffix(end)
        needed = (up.shape[0], lora[layer + _SIDES[end]].shape[1])
        found = _shape(names.get(layer), shapes)
        if found != needed:
            raise InputError(
                f"The adapter changes the layer {layer} of size {needed}, and the model's is "
                f"{found or 'not there'}: it was trained for another kind of base model."
            )


def _shape(place: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Of a layer, or of the rows of one that it is here: (name, (0, first row, rows))."""
    if not isinstance(place, tuple):
        return shapes.get(place)
    name, (_, _, rows) = place[:2]
    return (rows, *shapes[name][1:]) if name in shapes else None


def _knowing(tokenizer: Any, tokens: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """A copy of a CLIP's tokenizer whose encoders' tokenizers resolve the tokens."""
    tokenizer = copy.copy(tokenizer)
    for known, encoder in ENCODERS.items():
        own_name = tokenizer_name(tokenizer, known)
        if own_name is None:
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
