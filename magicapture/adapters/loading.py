"""Adapters read back, whatever program wrote their files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..errors import InputError, StorageError
from ..lora import LoraWeights
from .adapter import Adapter
from .embeddings import SUFFIXES, read_embedding
from .metadata import Facts, digest, restore
from .peft import read_peft
from .reading import AnyPath, gather, read_file

logger = logging.getLogger(__name__)

Form = Literal["kohya", "diffusers", "comfyui", "peft", "embedding"]

_STARTS: Mapping[str, Form] = {
    "lora_unet_": "kohya",
    "lora_te": "kohya",
    "unet.": "diffusers",
    "text_encoder": "diffusers",
    "down_blocks.": "diffusers",
    "diffusion_model.": "comfyui",
}
_FAMILY_OF_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


def detect(path: AnyPath) -> Form:
    """The form of a LoRA file or folder or an embedding; raises InputError for anything else."""
    path = Path(path)
    return "peft" if path.is_dir() else _form(read_file(path)[0], path)


def _form(entries: Mapping[str, Any], path: Path) -> Form:
    """The form by the keys; no keys at all are an adapter's that has no LoRA."""
    first = next(iter(entries), "lora_unet_")
    for start, form in _STARTS.items():
        if first.startswith(start):
            return form
    if first.startswith("base_model.model."):
        raise InputError(f"{path} is one file of a PEFT adapter; give the folder that it is in.")
    if any(key.startswith("model.diffusion_model.") for key in entries):
        raise InputError(f"{path} is a whole checkpoint; expected a LoRA or an embedding.")
    return "embedding"


def load_adapter(path: AnyPath, embeddings: Iterable[AnyPath] = ()) -> Adapter:
    """Read an adapter from a LoRA file of any form, a PEFT folder, or a single embedding.

    embeddings: files, or folders in which to look up the tokens that the LoRA names; the first
    place that has one wins. A LoRA that MagiCapture did not write names none, and gets the tokens
    of the files given. Raises InputError for a file of another kind, StorageError for one that is
    damaged or missing.
    """
    path, places = Path(path), [Path(place) for place in embeddings]
    if path.is_dir():
        lora, metadata = read_peft(path)
    else:
        entries, metadata = read_file(path)
        if _form(entries, path) == "embedding":
            return _from_embedding(path)
        lora = gather(entries, path) if entries or not metadata else {}
    facts = restore(metadata)
    if facts is None:
        given = [read_embedding(place) for place in places if place.is_file()]
        tokens = {embedding.name: embedding.vectors for embedding in given}
        return Adapter(lora, tokens, _family(lora, tokens, path))
    tokens = {token: _look_up(token, facts, places) for token in facts.digests}
    return Adapter(lora, tokens, facts.family, facts.recipe, facts.concepts, facts.info)


def _from_embedding(path: Path) -> Adapter:
    """The adapter of one token alone."""
    embedding = read_embedding(path)
    facts, tokens = restore(embedding.metadata), {embedding.name: embedding.vectors}
    if facts is None:
        return Adapter({}, tokens, _family({}, tokens, path))
    concepts = tuple(concept for concept in facts.concepts if concept.name == embedding.name)
    return Adapter({}, tokens, facts.family, facts.recipe, concepts, facts.info)


def _look_up(token: str, facts: Facts, places: Sequence[Path]) -> Mapping[str, Tensor]:
    """The vectors of a token that the LoRA's metadata names."""
    for place in places:
        files = [place / (token + suffix) for suffix in SUFFIXES] if place.is_dir() else [place]
        for file in files:
            if file.stem == token and file.is_file():
                vectors = read_embedding(file).vectors
                if digest(vectors) != facts.digests[token]:
                    logger.warning("%s is not the embedding that the LoRA was trained with.", file)
                return vectors
    raise StorageError(
        f"The adapter needs the embedding {token}.safetensors, which is not in "
        f"{', '.join(map(str, places)) or 'any folder that was given'}; put it there."
    )


def _family(
    lora: Mapping[str, LoraWeights], tokens: Mapping[str, Mapping[str, Tensor]], path: Path
) -> str:
    """The family of a file that does not tell: by its encoders, or by the text's width."""
    if any("clip_g" in of for of in tokens.values()) or any(k.startswith("clip_g.") for k in lora):
        return "sdxl"
    widths = [w.down.shape[1] for key, w in lora.items() if key.endswith(("attn2.to_k", "q_proj"))]
    widths += [vectors.shape[1] for of in tokens.values() for vectors in of.values()]
    if not widths or widths[0] not in _FAMILY_OF_WIDTH:
        raise InputError(
            f"{path} does not tell its base model: it has text of width "
            f"{widths[0] if widths else 'unknown'}; expected 768 (Stable Diffusion 1.x), 1024 "
            "(2.x) or 2048 (XL)."
        )
    return _FAMILY_OF_WIDTH[widths[0]]
