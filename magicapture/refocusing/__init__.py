"""Attention Refocusing while a picture is drawn: each token is held to its region.

By bias (`bias`, nearly free), by moving the latents (`gradient`), or both, in a region that is
given or found from the attention itself (`regions`). `guide` joins it to our samplers, and the
ComfyUI nodes to any of ComfyUI's.
"""

from .bias import bias_parts, biased, holding
from .engine import Refocuser, fit
from .focus import Focus, Rows, foci, word_columns
from .gradient import descend, region_loss
from .guide import PromptRefocuser
from .look import noised_look
from .preview import TokenMap, grid, mean_leakage, mean_map, region_strip, token_maps
from .regions import Finder, all_maps, blur, capture_of, region
from .settings import RefocusGuidance

__all__ = [
    "Finder",
    "Focus",
    "PromptRefocuser",
    "RefocusGuidance",
    "Refocuser",
    "Rows",
    "TokenMap",
    "all_maps",
    "bias_parts",
    "biased",
    "blur",
    "capture_of",
    "descend",
    "fit",
    "foci",
    "grid",
    "holding",
    "mean_leakage",
    "mean_map",
    "noised_look",
    "region",
    "region_loss",
    "region_strip",
    "token_maps",
    "word_columns",
]
