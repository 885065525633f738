"""How a thing is compared with its photo and with the style (P, supplement): in pixels, by DINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .dino import Dino
from .identity import clamp
from .losses import Resemblance


class DinoLook:
    """What DINO sees in decoded estimates x0, in their source photos and in the style's pictures.

    decode: latents to images, differentiable and unclamped; the source and the style are decoded
        by it as well, so that what it blurs counts on neither side.
    style: latents (1,C,h,w) of the style's pictures.
    """

    def __init__(
        self, dino: Dino, decode: Callable[[Tensor], Tensor], style: Sequence[Tensor]
    ) -> None:
        self.dino, self.decode = dino, decode
        with torch.inference_mode(False), torch.no_grad():
            self.references = torch.cat([dino(self.pixels(z)).look for z in style])

    def __call__(self, x0: Tensor, source: Tensor, mask: Tensor, signal: Tensor) -> Resemblance:
        """Of estimates and the latents of their source photos (n,C,h,w); mask (n,1,h,w) in 0..1."""
        seen = self.dino(self.pixels(x0))
        with torch.no_grad():
            keys = self.dino(self.pixels(source)).keys
        inside = F.interpolate(mask.float(), self.dino.grid, mode="area").flatten(1)
        return Resemblance(seen.keys, keys, inside, seen.look, self.references, signal)

    def pixels(self, latents: Tensor) -> Tensor:
        """The picture (B,3,H,W) in 0..1; what lies beyond is clamped, its gradient passes."""
        return clamp(self.decode(latents).float(), straight_through=True)
