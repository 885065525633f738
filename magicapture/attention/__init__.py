"""Where the UNet looks: attention recorded from its own forward pass, and turned into maps."""

from .capture import AttentionCapture, captured
from .layers import cross_attentions, last_blocks, select, self_attentions
from .maps import LayerMaps, Positions, head_mean, map_size, token_attention

__all__ = [
    "AttentionCapture",
    "LayerMaps",
    "Positions",
    "captured",
    "cross_attentions",
    "head_mean",
    "last_blocks",
    "map_size",
    "select",
    "self_attentions",
    "token_attention",
]
