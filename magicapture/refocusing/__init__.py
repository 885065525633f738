"""Attention Refocusing while a picture is drawn: each token is held to its region.

By bias (`bias`, nearly free), by moving the latents (`gradient`), or both, in a region that is
given or found from the attention itself (`regions`). `guide` joins it to our samplers, and the
ComfyUI nodes to any of ComfyUI's.
"""

from .bias import attention_bias, biased
from .engine import Refocuser, fit
from .focus import Focus, Rows, foci
from .gradient import Shortcut, descend, region_loss
from .guide import PromptRefocuser
from .preview import Sight, grid, mean_leakage, region_strip, sights
from .regions import Finder, Recorder, blur, region
from .settings import RefocusGuidance

__all__ = [
    "Finder",
    "Focus",
    "PromptRefocuser",
    "Recorder",
    "RefocusGuidance",
    "Refocuser",
    "Rows",
    "Shortcut",
    "Sight",
    "attention_bias",
    "biased",
    "blur",
    "descend",
    "fit",
    "foci",
    "grid",
    "mean_leakage",
    "region",
    "region_loss",
    "region_strip",
    "sights",
]
