"""Embedding files: one for each token, as ComfyUI, A1111 and diffusers write and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .adapter import Adapter
from .metadata import describe
from .reading import AnyPath, read_file

SUFFIXES = (".safetensors", ".pt", ".bin")
"""The endings that a loader tries for `embedding:name`, in ComfyUI's order."""


@dataclass(frozen=True)
class Embedding:
    """A token read from a file: its vectors (n,width) float32 by encoder, and the file's facts.

    name: the token that the file itself names, else the file's own name.
    """

    name: str
    vectors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def to_embedding(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A token as its file holds it: {"emb_params"}, or {"clip_l", "clip_g"} for two encoders."""
    tensors = {e: v.detach().to("cpu", torch.float32) for e, v in vectors.items()}
    return {"emb_params": tensors["clip_l"]} if set(tensors) == {"clip_l"} else tensors


def embedding_metadata(adapter: Adapter, name: str) -> dict[str, str]:
    """The metadata of one token's file."""
    return {**describe(adapter, name, "textual-inversion"), "magicapture.token": name}


def read_embedding(path: AnyPath) -> Embedding:
    """Read one token in any common form.

    {"emb_params"}, {"clip_l", "clip_g"}, A1111's {"string_to_param": {"*"}}, diffusers'
    {"<token>"}. Raises InputError for other contents, StorageError for a damaged file.
    """
    path = Path(path)
    entries, metadata = read_file(path)
    name = metadata.get("magicapture.token", path.stem)
    if "string_to_param" in entries:
        entries = _a1111(entries)
    if {"clip_l", "clip_g"} == set(entries):
        vectors = entries
    elif len(entries) == 1:
        ((key, values),) = entries.items()
        vectors = {"clip_l": values}
        if key.startswith("<") and key.endswith(">"):
            name = key[1:-1]
    else:
        raise InputError(
            f"{path} holds {len(entries)} entries ({', '.join(list(entries)[:3])}); expected an "
            "embedding of one token: emb_params, clip_l with clip_g, or string_to_param."
        )
    return Embedding(name, {e: _checked(v, path) for e, v in vectors.items()}, metadata)


def _a1111(entries: Mapping[str, Any]) -> dict[str, Any]:
    values = entries["string_to_param"]
    return dict(values) if isinstance(values, Mapping) else {}


def _checked(values: Any, path: Path) -> Tensor:
    """The vectors as (n,width) float32."""
    if not isinstance(values, Tensor) or values.ndim not in (1, 2) or not values.numel():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{path} holds {shape}; expected an embedding of shape (n, width).")
    vectors = values.detach().float().reshape(-1, values.shape[-1])
    if not vectors.isfinite().all():
        raise InputError(f"{path} holds NaN or infinite values; train or download it again.")
    return vectors
