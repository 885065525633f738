"""The files that diffusers' `load_lora_weights` and `load_textual_inversion` take."""

from __future__ import annotations

from torch import Tensor

from ..files import inside, safe_name
from .adapter import Adapter
from .embeddings import to_embedding
from .metadata import describe
from .reading import AnyPath
from .replacing import check_replaceable, write_all
from .saving import SavedFiles, writer

PARTS = {"unet": "unet", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""What a diffusers pipeline calls each part."""


def to_diffusers(adapter: Adapter) -> dict[str, Tensor]:
    """The LoRA by diffusers' keys, float32.

    The form has no alpha, so alpha / rank goes into lora_B.
    """
    tensors = {}
    for key, weights in adapter.lora.items():
        part, _, layer = key.partition(".")
        name, scale = f"{PARTS[part]}.{layer}", weights.alpha / weights.rank
        tensors[f"{name}.lora_A.weight"] = weights.down.float().cpu()
        tensors[f"{name}.lora_B.weight"] = weights.up.float().cpu() * scale
    return tensors


def save_diffusers(adapter: Adapter, folder: AnyPath, name: str) -> SavedFiles:
    """Write `name`.safetensors and one <token>.safetensors each into `folder`.

    Earlier files and errors as for `save_adapter`.
    """
    lora = inside(folder, f"{safe_name(name, 'output name')}.safetensors")
    contents = {lora: writer(to_diffusers(adapter), describe(adapter, lora.stem, "lora"))}
    for token, vectors in adapter.tokens.items():
        tensors: dict[str, Tensor] = to_embedding(vectors)
        if "emb_params" in tensors:
            tensors = {f"<{token}>": tensors["emb_params"]}
        path = inside(folder, f"{token}.safetensors")
        contents[path] = writer(tensors, describe(adapter, token, "textual-inversion"))
    for path in contents:
        check_replaceable(path)
    backups = write_all(contents)
    embeddings = tuple(path for path in contents if path != lora)
    return SavedFiles(lora, embeddings, tuple(backups))
