"""What a file tells about its adapter beside the tensors: safetensors metadata, text to text."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import Recipe, from_dict, to_dict
from ..errors import InputError, StorageError
from ..families import FAMILIES
from ..tokens import Concept, check_token_name
from ..version import __version__
from .adapter import ENCODERS, Adapter
from .card import description

logger = logging.getLogger(__name__)

FORMAT = "1"
_PREFIX = "magicapture."
TOKEN = f"{_PREFIX}token"
"""Where an embedding's file keeps its token's name."""
TOKENS = f"{_PREFIX}tokens"
"""Where every file keeps the digests of the training's tokens, by name."""

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What text of the wrong form raises while it is read."""

_VELOCITY = "stable-diffusion-v2-768-v"  # what SD 2.x is called where it predicts v


class Facts(NamedTuple):
    """What MagiCapture wrote into a file's metadata."""

    family: str
    recipe: Recipe | None
    concepts: tuple[Concept, ...]
    info: dict[str, str]
    digests: dict[str, str]
    """SHA-256 of each token's vectors, to notice an embedding of another run."""


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether MagiCapture wrote the file with this metadata."""
    return f"{_PREFIX}format" in metadata


def describe(adapter: Adapter, title: str, kind: str) -> dict[str, str]:
    """The metadata of one of the adapter's files; `kind` is "lora" or "textual-inversion".

    Beside our own facts it has the basics of the Stability model metadata standard (modelspec).
    """
    ours = {
        "format": FORMAT,
        "version": __version__,
        "family": adapter.family,
        "recipe": json.dumps(to_dict(adapter.recipe)) if adapter.recipe else "",
        "concepts": json.dumps([concept.facts() for concept in adapter.concepts]),
        "info": json.dumps(dict(adapter.info)),
        "tokens": json.dumps({name: digest(of) for name, of in adapter.tokens.items()}),
    }
    return {
        **{f"{_PREFIX}{key}": value for key, value in ours.items()},
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(adapter)}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        **({"modelspec.description": told} if (told := description(adapter)) else {}),
        "modelspec.trigger_phrase": ", ".join([*adapter.tokens, *_phrases(adapter)]),
        **({"modelspec.resolution": _resolution(adapter.recipe)} if adapter.recipe else {}),
    }


def _phrases(adapter: Adapter) -> list[str]:
    return [concept.spelled.words for concept in adapter.concepts if not concept.vectors]


def architecture(adapter: Adapter) -> str:
    """The base model's name in the model metadata standard."""
    velocity = adapter.family == "sd2" and adapter.info.get("prediction") == "v_prediction"
    return _VELOCITY if velocity else FAMILIES[adapter.family].architecture


def _resolution(recipe: Recipe) -> str:
    return f"{recipe.side}x{recipe.side}"


def restore(metadata: Mapping[str, str]) -> Facts | None:
    """Read back what `describe` wrote; None for a file that MagiCapture did not write.

    Raises InputError for a newer format, StorageError for facts that cannot be read.
    """
    if not is_ours(metadata):
        return None
    ours = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
    if ours["format"] != FORMAT:
        raise InputError(
            f"The file has MagiCapture's format {ours['format']:.50}, and this version reads "
            f"format {FORMAT}; update MagiCapture."
        )
    try:
        return Facts(
            _family(ours["family"]),
            _recipe(ours["recipe"]),
            tuple(Concept(**concept) for concept in json.loads(ours["concepts"])),
            {str(key): str(value) for key, value in json.loads(ours["info"]).items()},
            _digests(json.loads(ours["tokens"])),
        )
    except _MALFORMED as error:
        raise StorageError(
            f"The file's metadata is damaged ({type(error).__name__}: {error!s:.200}); restore "
            "it from a backup or train again."
        ) from error


def _family(text: str) -> str:
    if text not in ENCODERS:
        raise ValueError(f"the family {text!r:.100} is not one of {', '.join(ENCODERS)}")
    return text


def _digests(data: Mapping[str, str]) -> dict[str, str]:
    for name, text in data.items():
        check_token_name(name)
        if not isinstance(text, str):
            raise TypeError(f"the digest of {name} is {text!r:.100}")
    return dict(data)


def _recipe(text: str) -> Recipe | None:
    """The recipe; None where it cannot be read, since the weights are of use all the same."""
    try:
        data: dict[str, Any] = json.loads(text) if text else {}
        return from_dict(Recipe, data) if data else None
    except _MALFORMED as error:  # InputError is a ValueError
        logger.warning("The recipe in the file is left out: %.500s", error)
        return None


def digest(vectors: Mapping[str, Tensor]) -> str:
    """SHA-256 of one token's vectors as float32, over its encoders in order of their names."""
    sha = hashlib.sha256()
    for encoder, values in sorted(vectors.items()):
        values = values.detach().to("cpu", torch.float32).contiguous()
        sha.update(f"{encoder}{tuple(values.shape)}".encode())
        sha.update(values.numpy().tobytes())
    return sha.hexdigest()
