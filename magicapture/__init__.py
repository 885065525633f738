"""MagiCapture: a person's face in a portrait's style, from a handful of photos of each.

Every public name is here, and nothing below is public:

- train: `TrainingJob`, `Trainer`, `Adapter`; `save_adapter` writes one, `load_adapter` reads it
- choose among its steps: `Checkpoints`, made of a `Keep` with `KeepSettings`
- draw: `adapted`, `sample`; steered by `PromptRefocuser` or, without training, `ReferenceGuide`
- prepare: `load_folder`, `with_faces`, `judge_photos`; measure: `Person`, `measure_identity`
- finish: `super_resolve`, `restore_faces`, `guard_identity`
- try: `doll_example`, `paperdoll`
"""

from . import paperdoll
from .adapters import Adapter, load_adapter, save_adapter
from .backbone import Backbone
from .backbones import load_backbone
from .checkpoints import Checkpoints, Keep, KeepSettings
from .config import Recipe
from .data import Learnable, Photo, ReferenceSet, load_folder
from .data.faces import with_faces
from .demo.example import doll_example
from .dino import load_dino
from .doctor import contact_sheet, judge_photos
from .errors import (
    InputError,
    MagiCaptureError,
    NumericalError,
    OutOfMemoryError,
    StorageError,
    UnsupportedModelError,
)
from .faces.analyzer import FaceAnalyzer
from .faces.detect import load_detector
from .faces.embed import load_face_embedder
from .faces.models import ModelKind
from .faces.parse import load_parser
from .faces.registry import registered_model
from .losses import LOSSES, Loss
from .magicface import Reference, ReferenceGuide
from .metrics import METRICS, Metric
from .person import Person, measure_identity
from .prompts import prompt_for
from .recipes import recipe
from .refine.guard import guard_identity
from .refine.models import FaceRestorer, load_image_model
from .refine.restore import restore_faces
from .refine.upscale import super_resolve
from .refocusing import PromptRefocuser, RefocusGuidance, foci
from .sampling import SamplingSettings, adapted, sample
from .tokens import Concept, Prompt
from .training import Prepared, Previewed, Resumed, Scored, Stepped, Trainer, TrainingJob, Warned
from .version import __version__

__all__ = [
    "LOSSES",
    "METRICS",
    "Adapter",
    "Backbone",
    "Checkpoints",
    "Concept",
    "FaceAnalyzer",
    "FaceRestorer",
    "InputError",
    "Keep",
    "KeepSettings",
    "Learnable",
    "Loss",
    "MagiCaptureError",
    "Metric",
    "ModelKind",
    "NumericalError",
    "OutOfMemoryError",
    "Person",
    "Photo",
    "Prepared",
    "Previewed",
    "Prompt",
    "PromptRefocuser",
    "Recipe",
    "Reference",
    "ReferenceGuide",
    "ReferenceSet",
    "RefocusGuidance",
    "Resumed",
    "SamplingSettings",
    "Scored",
    "Stepped",
    "StorageError",
    "Trainer",
    "TrainingJob",
    "UnsupportedModelError",
    "Warned",
    "__version__",
    "adapted",
    "contact_sheet",
    "doll_example",
    "foci",
    "guard_identity",
    "judge_photos",
    "load_adapter",
    "load_backbone",
    "load_detector",
    "load_dino",
    "load_face_embedder",
    "load_folder",
    "load_image_model",
    "load_parser",
    "measure_identity",
    "paperdoll",
    "prompt_for",
    "recipe",
    "registered_model",
    "restore_faces",
    "sample",
    "save_adapter",
    "super_resolve",
    "with_faces",
]
