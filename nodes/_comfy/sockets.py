"""ComfyUI's IMAGE (B,H,W,C) and MASK (B,H,W) to the core's (B,3,H,W) and (B,1,H,W), and back.

What comes from a socket is copied into an ordinary tensor on the CPU: the executor's inference
mode makes tensors that autograd refuses, and under --gpu-only pictures come on the GPU, where faces
are not looked for. What leaves goes where ComfyUI keeps its pictures.
"""

from __future__ import annotations

import comfy.model_management as management
import torch
from einops import rearrange
from torch import Tensor

from ...magicapture.errors import InputError


def images_from_socket(images: Tensor) -> Tensor:
    """IMAGE (B,H,W,C) to float32 RGB (B,3,H,W) on the CPU; alpha is dropped.

    Raises InputError for other shapes.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"An image came in as {tuple(images.shape)}; expected (batch, height, width, 3)."
        )
    with torch.inference_mode(False):
        rgb = rearrange(images.to("cpu", torch.float32)[..., :3], "b h w c -> b c h w")
        return rgb.expand(-1, 3, -1, -1).clone(memory_format=torch.contiguous_format)


def images_to_socket(images: Tensor) -> Tensor:
    """RGB (B,3,H,W) to IMAGE (B,H,W,3), float32 within 0..1 on ComfyUI's device for pictures."""
    shown = rearrange(images.detach(), "b c h w -> b h w c").float().clamp(0, 1)
    return shown.to(management.intermediate_device()).contiguous()


def masks_from_socket(masks: Tensor) -> Tensor:
    """MASK (B,H,W) or (H,W) to float32 (B,1,H,W) on the CPU; InputError for other shapes."""
    if masks.ndim not in (2, 3):
        raise InputError(
            f"A mask came in as {tuple(masks.shape)}; expected (batch, height, width)."
        )
    with torch.inference_mode(False):
        flat = masks.to("cpu", torch.float32).reshape(-1, 1, *masks.shape[-2:])
        return flat.clone(memory_format=torch.contiguous_format)


def masks_to_socket(masks: Tensor) -> Tensor:
    """(B,1,H,W) to MASK (B,H,W), float32 within 0..1 on ComfyUI's device for pictures."""
    shown = masks.detach()[:, 0].float().clamp(0, 1)
    return shown.to(management.intermediate_device()).contiguous()
