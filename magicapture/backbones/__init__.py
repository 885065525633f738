"""The backbone over diffusers' models, and how it is loaded from files."""

from .diffusers import DiffusersBackbone
from .loading import load_backbone
from .taesd import load_taesd

__all__ = ["DiffusersBackbone", "load_backbone", "load_taesd"]
