"""How alike pictures' styles are, by the user's CLIP model or else by the base model's autoencoder.

Both see any two pictures as alike, so that what counts is in which way each differs from the mean
of the training's own pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbone import Backbone
from ..clip import PictureEncoder
from ..style import Space, StyleReader


class RelativeEyes:
    """Embeds pictures relative to a pool of them; fits `clip.PictureEncoder`.

    raw: the embeddings (N,D) of pictures (N,3,H,W). pool: (M,3,H,W). spread: whether to divide each
    number by its spread in the pool; factors (D,) multiply them then.
    """

    def __init__(
        self,
        raw: Callable[[Tensor], Tensor],
        pool: Tensor,
        *,
        spread: bool = False,
        factors: Tensor | float = 1.0,
    ) -> None:
        self._raw, self._factors = raw, factors
        self._space = Space.of(raw(pool), spread=spread)

    def of_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (N,D) of pictures (N,3,H,W) in 0..1."""
        return F.normalize(self._space(self._raw(images)) * self._factors, dim=-1)


def clip_eyes(clip: PictureEncoder, pool: Tensor) -> RelativeEyes:
    """Those of a CLIP model, without the mean of the pool (M,3,S,S)."""
    return RelativeEyes(lambda images: clip.of_images(images).float().cpu(), pool)


def autoencoder_eyes(backbone: Backbone, pool: Tensor) -> RelativeEyes:
    """Those of a base model's autoencoder: the statistics of `style.StyleReader`.

    pool (M,3,S,S): as the autoencoder paints them, and of the size of what is seen later.
    """
    reader = StyleReader(backbone)

    def raw(images: Sequence[Tensor] | Tensor) -> Tensor:
        return torch.stack([reader(image, None) for image in images])

    return RelativeEyes(raw, pool, spread=True, factors=reader.weights(pool[0]))
