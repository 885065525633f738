"""Latents of photos that were encoded before, for further trainings on the same photos."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from .digests import digest

Encoder = Callable[[Tensor], Tensor]

MOST = 256 * 2**20
"""Bytes of latents that are kept; those of 4,000 pictures at 512 px in Stable Diffusion."""


class LatentMemory:
    """Latents by the pictures that they are of; those not used for longest go first.

    It knows whole batches alone: a VAE's last bits depend on how many pictures it gets at once.
    most: bytes. encoded: how many batches were not known.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.encoded = most, 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def __call__(self, encode: Encoder, images: Tensor, *how: object) -> Tensor:
        """The latents, on the CPU, of images (B,3,S,S), encoded unless they are known.

        how: all that decides the result beside the images.
        """
        key = digest(images, *how)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        latents = encode(images).cpu()
        self.encoded += 1
        self._kept[key] = latents
        self._bytes += latents.nbytes
        while self._bytes > self.most:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return latents
