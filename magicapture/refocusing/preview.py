"""Where each token looks, as a picture: over the steps, at each resolution, and on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import LayerMaps
from ..config import Role
from ..images import to_pil
from ..losses.equations import leakage
from .focus import Focus

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL = 128  # pixels
_MARGIN = 150  # for the names of the rows
_HEADER = 22
_LABEL = 16
_CELLS_A_LINE = 8


@dataclass(frozen=True)
class TokenMap:
    """One token's attention at one step and resolution.

    share: of the steps done. factor: latent cells a side under one cell of the map. values (h,w):
    mean over the layers of that resolution. region (H,W): where the token belongs, 0..1, or None.
    leakage: the share of the attention outside it, 0..1, or None.
    """

    token: str
    role: Role
    share: float
    factor: int
    values: Tensor
    region: Tensor | None
    leakage: float | None


def token_maps(
    maps: Sequence[LayerMaps],
    row: int,
    tokens: Sequence[Focus],
    region: Tensor | None,
    share: float,
) -> list[TokenMap]:
    """What the tokens of one row of a pass look at, by token and then by resolution.

    region: the subject's (H,W) at the latents' size, or None where none is known.
    """
    found = []
    for token in tokens:
        inside = region if region is None or token.role == "subject" else 1 - region
        for factor in sorted({layer.factor for layer in maps}):
            of = [layer for layer in maps if layer.factor == factor]
            values = torch.stack([m.values[m.keys.index((row, token.name))] for m in of]).mean(0)
            outside = None if inside is None else _leakage(values, inside)
            found.append(
                TokenMap(token.name, token.role, share, factor, values.cpu(), inside, outside)
            )
    return found


def mean_leakage(seen: Sequence[TokenMap]) -> dict[str, float]:
    """Each token's leakage, the mean over steps and resolutions where it is known."""
    names = dict.fromkeys(shown.token for shown in seen)
    known = {n: [s.leakage for s in seen if s.token == n and s.leakage is not None] for n in names}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def mean_map(of: Sequence[TokenMap], side: int) -> Image:
    """The mean of one token's maps, `side` pixels square, and its region's border in green."""
    large = (F.interpolate(s.values[None, None].float(), (side, side))[0, 0] for s in of)
    scaled = torch.stack([values / values.max().clamp_min(1e-8) for values in large])
    heat = _heat(scaled.mean(0), side)
    regions = [shown.region for shown in of if shown.region is not None]
    return to_pil(_bordered(heat, _large(regions[-1], side)) if regions else heat)


def grid(seen: Sequence[TokenMap], image: Tensor | None = None) -> Image:
    """The maps as a table: a row for each token and resolution, a column for each step.

    Every map is scaled by its own peak, its leakage written on it. With the finished image
    (3,H,W) in 0..1, a last column shows the mean map over it, and the region's border in green.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    shares = sorted({shown.share for shown in seen})
    lines = list(dict.fromkeys((shown.token, shown.factor) for shown in seen))
    size = (_MARGIN + _CELL * (len(shares) + (image is not None)), _HEADER + _CELL * len(lines))
    sheet = Pillow.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, share in enumerate(shares):
        draw.text((_MARGIN + column * _CELL + 4, 5), f"step {share:.0%}", fill="black")
    for line, (token, factor) in enumerate(lines):
        top = _HEADER + line * _CELL
        of = [shown for shown in seen if (shown.token, shown.factor) == (token, factor)]
        height, width = of[0].values.shape
        draw.text((4, top + 6), token[:24], fill="black")
        draw.text((4, top + 24), f"{width} x {height}", fill="gray")
        for shown in of:
            left = _MARGIN + shares.index(shown.share) * _CELL
            sheet.paste(to_pil(_heat(shown.values, _CELL)), (left, top))
            if shown.leakage is not None:
                label = f"leakage {shown.leakage:.0%}"
                draw.rectangle((left, top, left + 66, top + _LABEL), fill="black")
                draw.text((left + 3, top + 2), label, fill="white")
        if image is not None:
            over = _overlay(image, of)
            sheet.paste(to_pil(over), (_MARGIN + len(shares) * _CELL, top))
    return sheet


def region_strip(regions: Sequence[tuple[float, Tensor | None]], image: Tensor) -> Image:
    """The region at each step over the finished image: the rest dark, the border in green.

    regions: share of the steps done, and the region (h,w) in 0..1, or None where there was none
    yet. image: (3,H,W) in 0..1.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    lines = -(-len(regions) // _CELLS_A_LINE)
    size = (_CELL * min(len(regions), _CELLS_A_LINE), _CELL * lines)
    sheet = Pillow.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (share, region) in enumerate(regions):
        line, column = divmod(number, _CELLS_A_LINE)
        left, top = column * _CELL, line * _CELL
        sheet.paste(to_pil(_in_region(_sized(image), region)), (left, top))
        label = f"{share:.0%}" if region is not None else f"{share:.0%} none"
        draw.rectangle((left, top, left + 66, top + _LABEL), fill="black")
        draw.text((left + 3, top + 2), label, fill="white")
    return sheet


def _leakage(values: Tensor, inside: Tensor) -> float:
    return float(leakage(values[None], inside[None, None].to(values), "none"))


def _heat(values: Tensor, side: int) -> Tensor:
    """A map (h,w) in colours (3,side,side), its peak the brightest."""
    from matplotlib import colormaps

    scaled = values.float() / values.max().clamp_min(1e-8)
    large = F.interpolate(scaled[None, None], (side, side), mode="nearest")[0, 0]
    colours = colormaps["inferno"](large.numpy())[..., :3]
    return torch.from_numpy(np.ascontiguousarray(colours)).float().movedim(-1, 0)


def _overlay(image: Tensor, of: Sequence[TokenMap]) -> Tensor:
    """The mean of some maps over the image, and the border of the last region known."""
    mean = torch.stack([shown.values for shown in of]).mean(0)
    weight = F.interpolate(mean[None, None], (_CELL, _CELL), mode="bilinear")[0]
    over = _sized(image) * (0.35 + 0.65 * weight / mean.max().clamp_min(1e-8))
    regions = [shown.region for shown in of if shown.region is not None]
    return _bordered(over, _large(regions[-1])) if regions else over


def _in_region(image: Tensor, region: Tensor | None) -> Tensor:
    """An image of a cell's size, dark outside the region; as it is without one."""
    if region is None:
        return image
    large = _large(region)
    return _bordered(image * (0.35 + 0.65 * large), large)


def _sized(image: Tensor) -> Tensor:
    return F.interpolate(image[None].float().cpu(), (_CELL, _CELL), mode="area")[0]


def _large(region: Tensor, side: int = _CELL) -> Tensor:
    """A region (h,w) at a cell's size (1,side,side)."""
    return F.interpolate(region[None, None].float().cpu(), (side, side), mode="nearest")[0]


def _bordered(image: Tensor, region: Tensor) -> Tensor:
    """An image with a region's border in green."""
    border = (F.max_pool2d(region, 3, 1, 1) - region).clamp(0, 1)
    return image * (1 - border) + torch.tensor([0.2, 1.0, 0.3]).view(3, 1, 1) * border
