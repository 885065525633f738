"""A face parser made of a network that labels pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .align import HEAD_SIZE
from .embed import Normalisation
from .protocols import Part


class FaceParser(nn.Module):
    """A network that labels pixels, with the meaning of its labels; fits `Parser`.

    network: images (B,3,S,S), normalised, to scores (B,N,S,S), or to a tuple that starts with
        them. labels: what each of the N means. side: S, or None for any multiple of 8.
    """

    mean: Tensor
    std: Tensor
    parts: Tensor

    def __init__(
        self,
        network: nn.Module,
        labels: Sequence[Part],
        normalisation: Normalisation,
        side: int | None = HEAD_SIZE,
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(3, 1, 1))
        self.register_buffer("parts", torch.tensor([int(part) for part in labels]))
        self.float().eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Upright heads (B,3,H,W) in 0..1 to (B,H,W) values of `Part`."""
        height, width = images.shape[-2:]
        size = (self.side or height, self.side or width)
        pixels = images.to(self.mean.device, torch.float32)
        if size != (height, width):
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        scores = self.network((pixels - self.mean) / self.std)
        if isinstance(scores, tuple):
            scores = scores[0]
        if size != (height, width):
            scores = F.interpolate(scores, (height, width), mode="bilinear")
        return self.parts[scores.argmax(dim=1)]
