"""What the finishing nodes share: settings as sliders, pictures beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..magicapture.config import help_of
from ._comfy import images_to_socket

CATEGORY = "MagiCapture/finishing"

SHOWN = 8
"""Rows of a preview at most."""


def share(config: type, name: str, step: float = 0.05) -> io.Float.Input:
    """A number for a setting, with its default, range and help."""
    field: Any = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return io.Float.Input(
        name,
        default=field.default,
        min=field.metadata["low"],
        max=field.metadata["high"],
        step=step,
        tooltip=help_of(config, name),
    )


def preview(rows: Sequence[Sequence[Tensor]]) -> ui.PreviewImage | None:
    """Pictures (3,H,W) beside each other, row by row; None without any,
    and SHOWN at most."""
    if not rows:
        return None
    return ui.PreviewImage(
        images_to_socket(torch.stack([torch.cat([*row], -1) for row in rows[:SHOWN]]))
    )
