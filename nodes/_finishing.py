"""What the finishing nodes share: pictures beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy_api.latest import ui
from torch import Tensor

from ._comfy import images_to_socket

SHOWN = 8
"""Rows of a preview at most."""


def preview(rows: Sequence[Sequence[Tensor]]) -> ui.PreviewImage | None:
    """Pictures (3,H,W) beside each other, SHOWN rows of them at most; None without any."""
    if not rows:
        return None
    return ui.PreviewImage(
        images_to_socket(torch.stack([torch.cat([*row], -1) for row in rows[:SHOWN]]))
    )
