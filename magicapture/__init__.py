"""MagiCapture: a person's face in a portrait's style, from a handful of photos of each."""

from .adapters import Adapter, load_adapter, save_adapter
from .backbone import Backbone
from .backbones import DiffusersBackbone, load_backbone
from .config import Recipe
from .data import ReferenceSet, load_folder
from .errors import (
    InputError,
    MagiCaptureError,
    NumericalError,
    StorageError,
    UnsupportedModelError,
)
from .faces.embed import load_face_embedder
from .prompts import prompt_for
from .recipes import recipe
from .sampling import SamplingSettings, sample
from .tokens import Concept
from .training import Trainer, TrainingJob
from .version import __version__

__all__ = [
    "Adapter",
    "Backbone",
    "Concept",
    "DiffusersBackbone",
    "InputError",
    "MagiCaptureError",
    "NumericalError",
    "Recipe",
    "ReferenceSet",
    "SamplingSettings",
    "StorageError",
    "Trainer",
    "TrainingJob",
    "UnsupportedModelError",
    "__version__",
    "load_adapter",
    "load_backbone",
    "load_face_embedder",
    "load_folder",
    "prompt_for",
    "recipe",
    "sample",
    "save_adapter",
]
