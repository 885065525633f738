"""ComfyUI's CLIP_VISION as what embeds pictures."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...magicapture.errors import InputError
from .sockets import images_to_socket


class ComfyEyes:
    """A CLIP_VISION; fits `PictureEncoder`. It scales and cuts pictures itself."""

    def __init__(self, vision: Any) -> None:
        self.vision = vision

    def of_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (N,D) of pictures (N,3,H,W); InputError where they are not projected."""
        found = self.vision.encode_image(images_to_socket(images)).image_embeds
        if found is None:
            raise InputError(
                "The input 'clip_vision' gives no embedding of a whole picture; load a CLIP model, "
                "such as CLIP-ViT-L-14."
            )
        return F.normalize(found.float().cpu(), dim=-1)
