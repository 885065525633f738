"""ComfyUI's IMAGE (B,H,W,C) and MASK (B,H,W) to the core's (B,3,H,W) and (B,1,H,W), and back.

What comes from a socket is copied into an ordinary tensor, since the executor's inference mode
makes tensors that autograd refuses.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ...magicapture.errors import InputError


def images_from_socket(images: Tensor) -> Tensor:
    """IMAGE (B,H,W,C) to float32 RGB (B,3,H,W); alpha is dropped.

    Raises InputError for other shapes.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"An image came in as {tuple(images.shape)}; expected (batch, height, width, 3)."
        )
    with torch.inference_mode(False):
        rgb = images[..., :3].movedim(-1, 1).float().expand(-1, 3, -1, -1)
        return rgb.clone(memory_format=torch.contiguous_format)


def images_to_socket(images: Tensor) -> Tensor:
    """RGB (B,3,H,W) to IMAGE (B,H,W,3), float32 on the CPU and within 0..1."""
    return images.detach().movedim(1, -1).float().clamp(0, 1).cpu().contiguous()


def masks_from_socket(masks: Tensor) -> Tensor:
    """MASK (B,H,W) or (H,W) to float32 (B,1,H,W); raises InputError for other shapes."""
    if masks.ndim not in (2, 3):
        raise InputError(
            f"A mask came in as {tuple(masks.shape)}; expected (batch, height, width)."
        )
    with torch.inference_mode(False):
        flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
        return flat.clone(memory_format=torch.contiguous_format)


def masks_to_socket(masks: Tensor) -> Tensor:
    """(B,1,H,W) to MASK (B,H,W), float32 on the CPU and within 0..1."""
    return masks.detach()[:, 0].float().clamp(0, 1).cpu().contiguous()


def picture(image: Tensor) -> Image.Image:
    """One image (3,H,W) in 0..1 as a Pillow picture, to show as a preview."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
