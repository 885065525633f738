"""Adapters on disk: written as one LoRA file and one embedding a token, read from any form."""

from .adapter import ENCODERS, FAMILY_NAMES, MAX_STRENGTH, Adapter, check_strength
from .card import check_consent, credited, model_card
from .embeddings import Embedding, read_embedding
from .forms import to_lora
from .kohya import to_kohya
from .loading import load_adapter, read_info
from .saving import SavedFiles, check_names, lora_file, save_adapter

__all__ = [
    "ENCODERS",
    "FAMILY_NAMES",
    "MAX_STRENGTH",
    "Adapter",
    "Embedding",
    "SavedFiles",
    "check_consent",
    "check_names",
    "check_strength",
    "credited",
    "load_adapter",
    "lora_file",
    "model_card",
    "read_embedding",
    "read_info",
    "save_adapter",
    "to_kohya",
    "to_lora",
]
