"""MagicFace: pictures of given concepts without training (arXiv 2408.07433).

Each concept comes with one picture. While the model draws, its decoder's self-attention also sees
the pictures' keys and values: at first from everywhere (`rsa`), later each from the region where
its concept is being drawn (`rba`), which the model's own attention shows (`segment`).
"""

from .concepts import Ids, Reference, concept_columns, exclusive_masks, square
from .guidance import guidance_rates
from .guide import ReferenceGuide
from .layers import Pair, decoder_layers, mapped_layers
from .rba import region_attention
from .references import ReferenceRows, reference_rows
from .rsa import ReferenceKeys, reference_attention
from .segment import Rows, Seen, Segmenter, areas, outlined, region_masks
from .session import Keys, Session
from .settings import MagicFaceSettings, Stage

__all__ = [
    "Ids",
    "Keys",
    "MagicFaceSettings",
    "Pair",
    "Reference",
    "ReferenceGuide",
    "ReferenceKeys",
    "ReferenceRows",
    "Rows",
    "Seen",
    "Segmenter",
    "Session",
    "Stage",
    "areas",
    "concept_columns",
    "decoder_layers",
    "exclusive_masks",
    "guidance_rates",
    "mapped_layers",
    "outlined",
    "reference_attention",
    "reference_rows",
    "region_attention",
    "region_masks",
    "square",
]
