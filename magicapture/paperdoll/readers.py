"""Networks that read dolls: identity embedders, face finder, parser, style embedder, probe.

All take pictures 0..1 and normalise them themselves, so that they fit where real face embedders do.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import FACE_LABELS
from .attributes import ATTRIBUTES

PARTS = 20  # labels of the parser
FACE = 56  # the embedders' inner resolution: half of the face embedders' 112


def faces_in(labels: Tensor) -> Tensor:
    """Where labels (B, H, W) are of the face: (B, 1, H, W), 0 or 1."""
    parts = torch.tensor(sorted(FACE_LABELS), device=labels.device)
    return torch.isin(labels, parts).float()[:, None]


def _conv(inward: int, outward: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outward),
        nn.SiLU(),
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.layers(x))


class ConvEmbedder(nn.Module):
    """Identity of aligned faces (B, 3, 112, 112) as vectors (B, 128), by convolutions."""

    def __init__(self, width: int = 24, dimensions: int = 128) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            _conv(3, w), _conv(w, 2 * w, 2), _Residual(2 * w), _conv(2 * w, 4 * w, 2),
            _Residual(4 * w), _conv(4 * w, 6 * w, 2), _Residual(6 * w),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.1), nn.Linear(6 * w * 49, dimensions, bias=False),
            nn.BatchNorm1d(dimensions),
        )  # fmt: skip

    def forward(self, faces: Tensor) -> Tensor:
        x = F.interpolate(faces, (FACE, FACE), mode="area") * 2 - 1
        return cast(Tensor, self.head(self.features(x)))


class PatchEmbedder(nn.Module):
    """Identity of aligned faces (B, 3, 112, 112) as vectors (B, 128), by attention over patches."""

    def __init__(self, width: int = 128, layers: int = 4, dimensions: int = 128) -> None:
        super().__init__()
        self.patches = nn.Sequential(_conv(3, width // 4, 2), nn.Conv2d(width // 4, width, 4, 4))
        self.places = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, 4, 3 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Linear(width, dimensions, bias=False), nn.BatchNorm1d(dimensions)
        )

    def forward(self, faces: Tensor) -> Tensor:
        x = F.interpolate(faces, (FACE, FACE), mode="area") * 2 - 1
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return cast(Tensor, self.head(self.norm(self.blocks(tokens)).mean(1)))


class FaceFinder(nn.Module):
    """Finds the one face of pictures (B, 3, H, W): landmarks (B, 5, 2) in pixels, score (B,)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.down = nn.Sequential(_conv(3, w), _conv(w, 2 * w, 2), _Residual(2 * w))
        self.deep = nn.Sequential(_conv(2 * w, 3 * w, 2), _Residual(3 * w), _conv(3 * w, 3 * w, 2))
        self.far = nn.Sequential(_Residual(3 * w), _Residual(3 * w))
        self.maps = nn.Conv2d(5 * w, 5, 1)
        self.score = nn.Linear(3 * w, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        height, width = pictures.shape[-2:]
        x = self.down(F.interpolate(pictures, (64, 64), mode="area") * 2 - 1)
        far = self.far(self.deep(x))
        near = torch.cat([x, F.interpolate(far, x.shape[-2:], mode="bilinear")], 1)
        maps = self.maps(near)
        share = maps.flatten(2).float().softmax(-1).view_as(maps)
        step = (torch.arange(maps.shape[-1], device=maps.device) + 0.5) / maps.shape[-1]
        places = torch.stack([(share.sum(2) * step).sum(-1), (share.sum(3) * step).sum(-1)], -1)
        size = torch.tensor([width, height], device=maps.device)
        return places * size - 0.5, self.score(far.mean((2, 3)))[:, 0].float()


class Parser(nn.Module):
    """Parts of pictures (B, 3, H, W), H and W multiples of 8, as logits (B, 20, H, W)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.one = _conv(3, w)
        self.two = nn.Sequential(_conv(w, 2 * w, 2), _Residual(2 * w))
        self.four = nn.Sequential(_conv(2 * w, 4 * w, 2), _Residual(4 * w))
        self.eight = nn.Sequential(_conv(4 * w, 6 * w, 2), _Residual(6 * w), _Residual(6 * w))
        self.up_four = _conv(10 * w, 4 * w)
        self.up_two = _conv(6 * w, 2 * w)
        self.up_one = nn.Sequential(_conv(3 * w, 2 * w), nn.Conv2d(2 * w, PARTS, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        one = self.one(pictures * 2 - 1)
        two = self.two(one)
        four = self.four(two)
        eight = self.eight(four)
        four = self.up_four(torch.cat([F.interpolate(eight, scale_factor=2.0), four], 1))
        two = self.up_two(torch.cat([F.interpolate(four, scale_factor=2.0), two], 1))
        return cast(Tensor, self.up_one(torch.cat([F.interpolate(two, scale_factor=2.0), one], 1)))


class StyleEmbedder(nn.Module):
    """Style of pictures (B, 3, H, W) with their faces (B, 1, H, W) left out: vectors (B, 96)."""

    def __init__(self, width: int = 24, dimensions: int = 96) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            _conv(4, w), _conv(w, 2 * w, 2), _conv(2 * w, 4 * w, 2), _Residual(4 * w),
            _conv(4 * w, 4 * w, 2), _Residual(4 * w),
        )  # fmt: skip
        self.head = nn.Linear(4 * w * 16, dimensions, bias=False)

    def forward(self, pictures: Tensor, faces: Tensor) -> Tensor:
        x = torch.cat([(pictures * 2 - 1) * (1 - faces), faces], 1)
        x = F.interpolate(x, (64, 64), mode="area")
        return cast(Tensor, self.head(F.adaptive_avg_pool2d(self.features(x), 4).flatten(1)))


class Probe(nn.Module):
    """What pictures (B, 3, H, W) show: logits (B, classes) by attribute."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            _conv(3, w), _conv(w, 2 * w, 2), _Residual(2 * w), _conv(2 * w, 4 * w, 2),
            _Residual(4 * w), _conv(4 * w, 6 * w, 2), _Residual(6 * w),
        )  # fmt: skip
        size = 6 * w * 16
        self.heads = nn.ModuleList([nn.Linear(size, len(o)) for o in ATTRIBUTES.values()])

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = F.interpolate(pictures, (96, 96), mode="area") * 2 - 1
        flat = F.adaptive_avg_pool2d(self.features(x), 4).flatten(1)
        return {name: head(flat) for name, head in zip(ATTRIBUTES, self.heads, strict=True)}
