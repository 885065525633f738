"""PEFT's form: a folder for each part with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, StorageError
from ..lora import LoraWeights
from .kinds import refuse_others
from .layers import gather
from .reading import read_file

START = "base_model.model."
"""How every key of PEFT's files starts."""

PARTS = {
    "unet": "unet",
    "transformer": "transformer",
    "text_encoder": "clip_l",
    "text_encoder_2": "clip_g",
}
"""The parts of an adapter by their folders, which are diffusers' names of its models."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_STATED = "lora_adapter_metadata"


def read_peft(folder: Path) -> tuple[dict[str, LoraWeights], dict[str, str]]:
    """Read the parts in a folder, or one part's own folder, with the metadata of the last.

    Raises InputError for a folder without any, StorageError for a damaged file.
    """
    if (folder / _CONFIG).is_file():
        return _read_part(folder)
    found = [folder / name for name in PARTS if (folder / name / _CONFIG).is_file()]
    if not found:
        raise InputError(
            f"{folder} has no {_CONFIG}, nor do {', '.join(PARTS)} in it; expected an adapter in "
            "PEFT's form."
        )
    lora: dict[str, LoraWeights] = {}
    metadata: dict[str, str] = {}
    for part in found:
        weights, metadata = _read_part(part)
        lora |= weights
    return lora, metadata


def _read_part(folder: Path) -> tuple[dict[str, LoraWeights], dict[str, str]]:
    tensors, metadata = read_file(folder / _WEIGHTS)
    config = _read_config(folder / _CONFIG)
    is_text = any(".self_attn." in key for key in tensors)
    part = (folder.name if folder.name in PARTS else "text_encoder") if is_text else "unet"
    plain = {key.removeprefix(START): tensor for key, tensor in tensors.items()}
    refuse_others(plain, folder)
    lora = gather({f"{part}.{key}": tensor for key, tensor in plain.items()}, folder / _WEIGHTS)
    return _with_alphas(lora, config, folder / _CONFIG), metadata


def with_stated_alphas(
    lora: Mapping[str, LoraWeights], metadata: Mapping[str, str], path: Path
) -> dict[str, LoraWeights]:
    """A LoRA of diffusers' keys, which have no alpha, with the one that its metadata states.

    Newer versions of diffusers put PEFT's config there, "unet.lora_alpha" and so on. Raises
    StorageError for one that cannot be read.
    """
    try:
        stated = json.loads(metadata.get(_STATED) or "{}")
        parts = [
            (part, {key.removeprefix(f"{name}."): value for key, value in stated.items()})
            for name, part in PARTS.items()
            if any(key.startswith(f"{name}.") for key in stated)
        ]
    except (ValueError, AttributeError, RecursionError) as error:
        raise StorageError(_damaged(path, error)) from error
    result = dict(lora)
    for part, config in parts:
        own = {name: of for name, of in lora.items() if name.startswith(f"{part}.")}
        result |= _with_alphas(own, config, path)
    return result


def _with_alphas(
    lora: Mapping[str, LoraWeights], config: Mapping[str, Any], path: Path
) -> dict[str, LoraWeights]:
    try:
        alphas = {name: _alpha(config, name, weights.rank) for name, weights in lora.items()}
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise StorageError(_damaged(path, error)) from error
    return {name: replace(of, alpha=alphas[name]) for name, of in lora.items()}


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(_damaged(path, error)) from error
    if kind != "LORA":
        raise InputError(f"{path} describes an adapter of type {kind!r:.100}; expected LORA.")
    return config


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged or not PEFT's ({type(error).__name__}: {error!s:.200}); save it again."
    )


def _alpha(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The alpha of a layer, whose pattern may name the layer's ending alone, as in PEFT."""
    patterns = (config.get("alpha_pattern") or {}).items()
    matching = (alpha for pattern, alpha in patterns if re.search(rf"(^|\.)({pattern})$", name))
    alpha = float(next(matching, config.get("lora_alpha", rank)))
    return alpha * rank**0.5 if config.get("use_rslora") else alpha
