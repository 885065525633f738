"""Adapters on disk: written as one LoRA file and one embedding a token, read from any form."""

from .adapter import ENCODERS, Adapter
from .diffusers import save_diffusers, to_diffusers
from .embeddings import Embedding, read_embedding
from .kohya import to_kohya
from .loading import detect, load_adapter
from .peft import save_peft
from .saving import SavedFiles, check_names, save_adapter

__all__ = [
    "ENCODERS",
    "Adapter",
    "Embedding",
    "SavedFiles",
    "check_names",
    "detect",
    "load_adapter",
    "read_embedding",
    "save_adapter",
    "save_diffusers",
    "save_peft",
    "to_diffusers",
    "to_kohya",
]
