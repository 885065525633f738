"""Where a network looks: its fused attention tapped in its own forward pass, and made into maps."""

from .agreement import agreement
from .capture import AttentionCapture, captured
from .layers import (
    block_of,
    blocks,
    cross_attentions,
    last_blocks,
    select,
    select_own,
    self_attentions,
)
from .maps import LayerMaps, Positions, factor_of
from .tap import (
    Attention,
    Call,
    Network,
    NotWholeError,
    Picture,
    Run,
    Size,
    Tap,
    TappedTorch,
    TappedUNet,
)

__all__ = [
    "Attention",
    "AttentionCapture",
    "Call",
    "LayerMaps",
    "Network",
    "NotWholeError",
    "Picture",
    "Positions",
    "Run",
    "Size",
    "Tap",
    "TappedTorch",
    "TappedUNet",
    "agreement",
    "block_of",
    "blocks",
    "captured",
    "cross_attentions",
    "factor_of",
    "last_blocks",
    "select",
    "select_own",
    "self_attentions",
]
