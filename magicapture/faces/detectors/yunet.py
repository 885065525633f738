"""YuNet, run by PyTorch alone; its smaller version comes with the pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..content import Content, convolutions
from ..models import ONNX, ModelFile, ModelKind
from ..square import SquareDetector
from ..weights import filled

_STRIDES = (8, 16, 32)  # pixels between two cells, for each of the three levels
_SURE, _OVERLAP = 0.6, 0.3  # the least score of a face, and the most two faces may overlap


class _Unit(nn.Module):
    """A pointwise convolution, then a depthwise one."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(channels, out, 1)
        self.depth = nn.Conv2d(out, out, 3, padding=1, groups=out)

    def forward(self, x: Tensor) -> Tensor:
        return self.depth(self.point(x))


class YuNet(nn.Module):
    """YuNet with batch normalisation folded in (Wu, Peng, Yu 2023): its small version or `wide`.

    Convolutions stand in the order in which exports to ONNX run them.
    """

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        middle = 64 if wide else 32
        widths = [(16, 16), (16, middle), (middle, 64), (64, 64), (64, 64), (64, 64)]
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList([_Unit(inner, inner), _Unit(inner, out)] if i else [_Unit(inner, out)])
            for i, (inner, out) in enumerate(widths)
        )
        self.neck = nn.ModuleList(_Unit(64, 64) for _ in _STRIDES)
        self.shared = nn.ModuleList(_Unit(64, 64) for _ in _STRIDES if wide)
        # Whether a cell is of a face, where its box is, whether it is its middle, and its points.
        self.heads = nn.ModuleList(
            nn.ModuleList(_Unit(64, out) for _ in _STRIDES) for out in (1, 4, 1, 10)
        )

    def forward(self, pictures: Tensor) -> list[list[Tensor]]:
        """Pictures (B,3,H,W) BGR in 0..255, sides of whole 32 pixels: of each head three maps."""
        x = F.relu_(self.stem(pictures))
        levels: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            if i in (1, 3, 4, 5):
                x = F.max_pool2d(x, 2)
            for unit in stage:  # type: ignore[attr-defined]
                x = F.relu_(unit(x))
            levels.append(x)
        eight, sixteen, coarse = levels[3:]
        coarse = F.relu_(self.neck[0](coarse))
        sixteen = F.relu_(self.neck[1](sixteen + F.interpolate(coarse, scale_factor=2.0)))
        eight = F.relu_(self.neck[2](eight + F.interpolate(sixteen, scale_factor=2.0)))
        seen = [eight, sixteen, coarse]
        if self.shared:
            seen = [F.relu_(unit(x)) for unit, x in zip(self.shared, seen, strict=True)]
        return [
            [unit(x) for unit, x in zip(head, seen, strict=True)]  # type: ignore[call-overload]
            for head in self.heads
        ]


def decode(maps: list[list[Tensor]]) -> Tensor:
    """Every cell of one picture as a face (N,15): x0, y0, x1, y1, five points, score."""
    rows = []
    for stride, face, box, middle, points in zip(_STRIDES, *maps, strict=True):
        height, width = face.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cell = torch.stack([x, y], dim=-1).to(face)
        score = (face.sigmoid() * middle.sigmoid())[0, 0, ..., None].sqrt()
        shift, size = box[0].permute(1, 2, 0).split(2, dim=-1)
        half = size.exp() / 2
        corners = torch.cat([cell + shift - half, cell + shift + half], dim=-1)
        landmarks = points[0].permute(1, 2, 0) + cell.repeat(1, 1, 5)
        rows.append(torch.cat([corners * stride, landmarks * stride, score], -1).flatten(0, 1))
    return torch.cat(rows)


def apart(rows: Tensor) -> Tensor:
    """Faces (N,15) without those that overlap a surer one, the surest first."""
    rows, kept = rows[rows[:, 14].argsort(descending=True)], [rows[:0]]
    while len(rows):
        kept.append(rows[:1])
        rows = rows[_overlap(rows[0], rows) <= _OVERLAP]  # it overlaps itself
    return torch.cat(kept)


def _overlap(face: Tensor, others: Tensor) -> Tensor:
    """The area that a face (15,) has in common with others (N,15), over that of both together."""
    corners = torch.cat([face[:2].maximum(others[:, :2]), face[2:4].minimum(others[:, 2:4])], 1)
    common, own, theirs = _area(corners), _area(face), _area(others)
    return common / (own + theirs - common)


def _area(rows: Tensor) -> Tensor:
    return (rows[..., 2:4] - rows[..., :2]).clamp(min=0).prod(-1)


def _recognises(content: Content) -> bool:
    if content.graph is None:
        return {"stem.weight", "neck.2.depth.weight", "heads.3.2.depth.weight"} <= content.names
    return bool(
        content.graph.picture and {"obj_8", "obj_16", "obj_32"} <= set(content.graph.outputs)
    )


def _load(content: Content) -> SquareDetector:
    weights = content.weights or _from_onnx(content.path)
    network = filled(YuNet("shared.0.point.weight" in weights), weights, content.path.name)
    network.to(memory_format=torch.channels_last)  # twice as fast as the usual order

    @torch.no_grad()
    def find(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        rows = decode(network(pixels[None].float()))
        return apart(rows[rows[:, 14] >= _SURE]).numpy()

    return SquareDetector(find)


def _from_onnx(path: Path) -> dict[str, Tensor]:
    """The weights of an export to ONNX, by our names."""
    given = convolutions(path)
    names = {len(names): names for names in (YuNet(w).state_dict().keys() for w in (False, True))}
    if len(given) not in names:
        raise InputError(
            f"{path.name} looks like YuNet, but holds {len(given)} weights; expected one of "
            f"{', '.join(map(str, names))}. It is a later version, or damaged."
        )
    return dict(zip(names[len(given)], given, strict=True))


YUNET = ModelKind(
    "detector",
    "YuNet (OpenCV)",
    files=(
        ModelFile(
            "face_detection_yunet_2023mar.onnx",
            "facexlib",
            "the repository opencv/opencv_zoo, folder models/face_detection_yunet",
            "MIT",
            rank=50,
            names=("*yunet*.onnx",),
        ),
        ModelFile(
            "yunet_s.safetensors",
            "magicapture",
            "the repository ShiqiYu/libfacedetection.train",
            "Apache-2.0",
            rank=60,
            shipped=Path(__file__).parents[1] / "shipped" / "yunet_s.safetensors",
        ),
    ),
    endings=(*ONNX, ".safetensors"),
    recognises=_recognises,
    load=_load,
)
