"""ComfyUI's UPSCALE_MODEL: spandrel's descriptor, where it is loaded from, and on which device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher

from ...magicapture.errors import InputError
from ...magicapture.refine.models import load_image_model

_PER_PIXEL = 3 * 4 * 384  # bytes a network needs for a pixel of a tile and a step of its scale


def load_restorer(path: Path) -> Any:
    """A face restorer as Load Upscale Model would return it."""
    model = load_image_model(path)
    # Newer ComfyUI manages the memory of such models, and its own nodes look for this.
    managed = getattr(comfy.model_patcher, "CoreModelPatcher", None)
    if managed is not None:
        model.patcher = managed(  # type: ignore[attr-defined]
            model.model,
            load_device=management.get_torch_device(),
            offload_device=management.unet_offload_device(),
        )
    return model


@contextmanager
def on_device(model: Any, side: int = 512) -> Iterator[None]:
    """Have an UPSCALE_MODEL on the compute device, with memory for tiles of a side in pixels.

    Where ComfyUI manages such models it decides when they leave again; elsewhere they go back to
    the CPU, as its own upscaling node does. Raises InputError for what is no UPSCALE_MODEL.
    """
    if not hasattr(model, "model") or not hasattr(model, "scale"):
        raise InputError(
            f"The model is a {type(model).__name__}; connect Load Upscale Model or Load Face "
            "Restorer."
        )
    needed = side * side * _PER_PIXEL * max(model.scale, 1)
    patcher = getattr(model, "patcher", None)
    if patcher is not None:
        management.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
        yield
        return
    device = management.get_torch_device()
    management.free_memory(needed + management.module_size(model.model), device)
    try:
        model.to(device)
        yield
    finally:
        model.to("cpu")
