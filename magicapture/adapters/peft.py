"""PEFT's form: a folder for each part with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError, StorageError
from ..lora import LoraWeights
from .adapter import Adapter
from .diffusers import PARTS
from .metadata import describe
from .reading import AnyPath, gather, read_file
from .replacing import write_all
from .saving import writer

_CONFIG, _WEIGHTS, _START = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def save_peft(adapter: Adapter, folder: AnyPath) -> list[Path]:
    """Write unet/, text_encoder/ and text_encoder_2/ as far as the adapter has them.

    `PeftModel.from_pretrained(unet, folder / "unet")` loads one. PEFT names a layer as the model
    object does, so a text encoder's follow the transformers that is installed. Raises InputError
    for a folder that already has one of them, and for an adapter without a LoRA.
    """
    parts = {part: adapter.part(part) for part in PARTS}
    folders = {part: Path(folder) / PARTS[part] for part, lora in parts.items() if lora}
    taken = [path for path in folders.values() if path.exists()]
    if taken or not folders:
        raise InputError(
            f"{taken[0]} is there already; choose another folder."
            if taken
            else "The adapter has no LoRA, so there is nothing to write in PEFT's form."
        )
    contents: dict[Path, Callable[[Path], object]] = {}
    for part, target in folders.items():
        lora = {_module_name(part, layer): weights for layer, weights in parts[part].items()}
        config = json.dumps(_config(lora), indent=2)
        contents[target / _CONFIG] = partial(Path.write_text, data=config, encoding="utf-8")
        contents[target / _WEIGHTS] = writer(_tensors(lora), describe(adapter, part, "lora"))
    write_all(contents)
    return list(folders.values())


def _module_name(part: str, layer: str) -> str:
    """A layer's name in the model object: transformers 5 dropped CLIPTextModel's "text_model."."""
    flat = part == "clip_l" and int(version("transformers").partition(".")[0]) >= 5
    return layer.removeprefix("text_model.") if flat else layer


def _config(lora: dict[str, LoraWeights]) -> dict[str, Any]:
    first = next(iter(lora.values()))
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": sorted(lora),
        "rank_pattern": {n: w.rank for n, w in lora.items() if w.rank != first.rank},
        "alpha_pattern": {n: w.alpha for n, w in lora.items() if w.alpha != first.alpha},
        "inference_mode": True,
    }


def _tensors(lora: dict[str, LoraWeights]) -> dict[str, Tensor]:
    tensors = {}
    for name, weights in lora.items():
        tensors[f"{_START}{name}.lora_A.weight"] = weights.down.float().cpu()
        tensors[f"{_START}{name}.lora_B.weight"] = weights.up.float().cpu()
    return tensors


def read_peft(folder: Path) -> tuple[dict[str, LoraWeights], dict[str, str]]:
    """Read the parts in a folder, or one part's own folder, with the metadata of the last.

    Raises InputError for a folder without any, StorageError for a damaged file.
    """
    if (folder / _CONFIG).is_file():
        return _read_part(folder)
    found = [folder / name for name in PARTS.values() if (folder / name / _CONFIG).is_file()]
    if not found:
        raise InputError(
            f"{folder} has no {_CONFIG}, nor do {', '.join(PARTS.values())} in it; expected an "
            "adapter in PEFT's form."
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
    part = (folder.name if folder.name in PARTS.values() else "text_encoder") if is_text else "unet"
    named = {f"{part}.{key.removeprefix(_START)}": tensor for key, tensor in tensors.items()}
    lora = gather(named, folder / _WEIGHTS)
    return {
        name: replace(w, alpha=_alpha(config, name, w.rank)) for name, w in lora.items()
    }, metadata


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged or not PEFT's ({type(error).__name__}: {error}); save it again."
        ) from error
    if kind != "LORA":
        raise InputError(f"{path} describes an adapter of type {kind}; expected LORA.")
    return config


def _alpha(config: dict[str, Any], name: str, rank: int) -> float:
    """The alpha of a layer, whose pattern may name the layer's ending alone, as in PEFT."""
    patterns = (config.get("alpha_pattern") or {}).items()
    matching = (alpha for pattern, alpha in patterns if re.search(rf"(^|\.)({pattern})$", name))
    alpha = float(next(matching, config.get("lora_alpha", rank)))
    return alpha * rank**0.5 if config.get("use_rslora") else alpha
