"""Super-resolution by tiles: bounded memory, no seams, any target size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import InputError, OutOfMemoryError
from ..images import resize
from .models import architecture_of

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

logger = logging.getLogger(__name__)

SMALLEST_TILE = 128
"""Tiles are not halved below this side, in pixels."""

LONGEST_SIDE = 16384
"""Longest side of a result, in pixels: beyond it a mistyped factor is likelier than a wish."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut for a network; all in pixels of its input.

    size: largest side of what the network sees at once.
    context: seen around each tile and thrown away, so that a tile's edge, where the network lacks
        its surroundings, never reaches the result.
    feather: on each side of a seam, where neighbours are blended.

    Raises InputError where the context and the feather leave too little of a tile.
    """

    size: int = 512
    context: int = 32
    feather: int = 8

    def __post_init__(self) -> None:
        own = self.size - 2 * (self.context + self.feather)
        if min(self.context, self.feather) < 0 or own < max(4 * self.feather, 1):
            raise InputError(
                f"Tiles of {self.size} pixels with {self.context} of context and {self.feather} "
                "of feather leave nothing of their own; take larger tiles."
            )


@dataclass(frozen=True)
class _Span:
    """A tile along one axis: its own part from `start` to `stop` of a whole of `length`."""

    start: int
    stop: int
    length: int
    tiling: Tiling

    def grown(self, margin: int) -> slice:
        """The part and a margin on both sides, inside the picture."""
        return slice(max(self.start - margin, 0), min(self.stop + margin, self.length))

    def weights(self, scale: int) -> Tensor:
        """The share of each kept output pixel; all tiles' shares of a pixel sum to 1."""
        feather = self.tiling.feather
        kept = self.grown(feather)
        place = (torch.arange(kept.start * scale, kept.stop * scale) + 0.5) / scale
        shares = torch.ones_like(place)
        if self.start > 0 and feather:
            shares *= ((place - self.start) / (2 * feather) + 0.5).clamp(0, 1)
        if self.stop < self.length and feather:
            shares *= 1 - ((place - self.stop) / (2 * feather) + 0.5).clamp(0, 1)
        return shares


def _spans(length: int, tiling: Tiling) -> list[_Span]:
    """Tiles of nearly equal length that cover an axis; one where it fits into a tile."""
    own = tiling.size - 2 * (tiling.context + tiling.feather)
    count = 1 if length <= tiling.size else math.ceil(length / own)
    cuts = [i * length // count for i in range(count + 1)]
    return [_Span(start, stop, length, tiling) for start, stop in pairwise(cuts)]


@torch.no_grad()
def upscale(
    model: ImageModelDescriptor[nn.Module],
    images: Tensor,
    tiling: Tiling | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tensor:
    """Images (B,3,H,W), RGB in 0..1, to (B,3,H*s,W*s) by a network of scale s, on their device.

    The network stays on its device and gets one tile at a time. progress(done, total) is called
    after each tile and may raise to stop. When memory runs out the tiles are halved, down to
    SMALLEST_TILE; then OutOfMemoryError is raised. InputError for a network that is not for
    super-resolution. A network that must see the picture whole gets it whole.
    """
    from spandrel import ModelTiling

    _require_super_resolution(model)
    tiling = tiling or Tiling()
    if model.tiling is ModelTiling.INTERNAL:
        tiling = replace(tiling, size=max(*images.shape[-2:], tiling.size))
    while True:
        try:
            return _by_tiles(model, images, tiling, progress)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            half = tiling.size // 2
            if half < SMALLEST_TILE or model.tiling is ModelTiling.INTERNAL:
                raise OutOfMemoryError(
                    f"The memory does not hold a tile of {tiling.size} pixels for "
                    f"{architecture_of(model)}. Close other programs, or take a smaller model."
                ) from error
        # Out of the except block, whose traceback would keep the tile's tensors alive.
        logger.warning("Out of memory with tiles of %d pixels; going on with %d.", 2 * half, half)
        tiling = replace(tiling, size=half)


def _by_tiles(
    model: ImageModelDescriptor[nn.Module],
    images: Tensor,
    tiling: Tiling,
    progress: Callable[[int, int], object],
) -> Tensor:
    scale, (height, width) = model.scale, images.shape[-2:]
    tiles = list(product(_spans(height, tiling), _spans(width, tiling)))
    result = images.new_zeros((len(images), 3, height * scale, width * scale), dtype=torch.float32)
    margin, total = tiling.context + tiling.feather, len(tiles) * len(images)
    for done, (image, (rows, columns)) in enumerate(product(range(len(images)), tiles), start=1):
        seen = images[image : image + 1, :, rows.grown(margin), columns.grown(margin)]
        output = model(seen.to(model.device, model.dtype))[0].to(result)
        y, x = (_kept(span, scale, margin) for span in (rows, columns))
        shares = rows.weights(scale)[:, None] * columns.weights(scale)
        down, across = (_scaled(span.grown(tiling.feather), scale) for span in (rows, columns))
        result[image, :, down, across] += output[:, y, x] * shares.to(result)
        progress(done, total)
    return result


def _scaled(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)


def _kept(span: _Span, scale: int, margin: int) -> slice:
    """What is kept of a tile's output, which starts where the tile's input does."""
    first, kept = span.grown(margin).start, span.grown(span.tiling.feather)
    return _scaled(slice(kept.start - first, kept.stop - first), scale)


def _require_super_resolution(model: ImageModelDescriptor[nn.Module]) -> None:
    name = architecture_of(model)
    if getattr(model, "purpose", None) == "FaceSR":
        raise InputError(
            f"{name} restores faces; use Restore Faces, or a model such as RealESRGAN."
        )
    if (model.input_channels, model.output_channels) != (3, 3):
        raise InputError(
            f"{name} turns {model.input_channels} channels into {model.output_channels}; expected "
            "a model for RGB pictures."
        )


def _is_out_of_memory(error: Exception) -> bool:
    # A GPU has a type of its own; other devices and the CPU tell it in words.
    words = ("out of memory", "not enough memory")
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def sized(size: tuple[int, int], *, factor: float = 0, long_side: int = 0) -> tuple[int, int]:
    """Height and width scaled by a factor, or until the longer one is `long_side` pixels.

    Raises InputError unless exactly one of them is given, and for more than LONGEST_SIDE.
    """
    if (factor > 0) == (long_side > 0):
        raise InputError("Give either a factor or the long side in pixels, and leave the other 0.")
    share = factor or long_side / max(size)
    height, width = (max(1, round(side * share)) for side in size)
    if max(height, width) > LONGEST_SIDE:
        raise InputError(
            f"The result would be {width} x {height} pixels; at most {LONGEST_SIDE} a side are "
            "made. Take a smaller factor."
        )
    return height, width


def super_resolve(
    model: ImageModelDescriptor[nn.Module],
    images: Tensor,
    size: tuple[int, int] | None = None,
    tiling: Tiling | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tensor:
    """Images (B,3,H,W) enlarged by a network to a height and width; None: by its own scale.

    The network runs once, and again while the result is too small; what is too large then is
    scaled down. Raises as `upscale`.
    """
    result = upscale(model, images, tiling, progress)
    if size is None:
        return result
    while model.scale > 1 and any(
        have < want for have, want in zip(result.shape[-2:], size, strict=True)
    ):
        result = upscale(model, result, tiling, progress)
    return resize(result, size)
