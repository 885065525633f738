"""MagicFace: pictures of given concepts without training (arXiv 2408.07433).

Each concept comes with one picture. While the model draws, its decoder's self-attention also sees
the pictures' keys and values: at first from everywhere (RSA), later each from the region where
its concept is being drawn (RBA), which the model's own attention shows (`segment`).
"""

from .attention import ReferenceKeys, reference_attention, region_attention
from .concepts import Ids, Reference, concept_columns, exclusive_masks, square
from .guide import ReferenceGuide
from .layers import decoder_layers
from .references import ReferenceRows, reference_rows
from .regions import guidance_rates
from .segment import Rows, Seen, Segmenter, areas, outlined, region_masks
from .session import Keys, Session
from .settings import MagicFaceSettings, Stage, share_at

__all__ = [
    "Ids",
    "Keys",
    "MagicFaceSettings",
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
    "outlined",
    "reference_attention",
    "reference_rows",
    "region_attention",
    "region_masks",
    "share_at",
    "square",
]
