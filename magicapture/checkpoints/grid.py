"""Kept steps beside each other as one picture: a row for each, a column for each seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ..images import resize
from ..images.sheet import PLAIN, Tile, sheet
from .record import Record

MARKED = "#15803d"
"""The colour of the marked step's frames and text."""

SIDE = 192


def grid(records: Sequence[Record], pictures: Mapping[int, Tensor], marked: int) -> Tensor:
    """The grid (3,H,W) of records and their pictures (N,3,s,s) by step; marked: the best step."""
    tiles = [tile for one in records for tile in _row(one, pictures[one.step], one.step == marked)]
    return sheet(tiles, side=SIDE, columns=len(tiles) // len(records))


def _row(record: Record, pictures: Tensor, best: bool) -> Iterator[Tile]:
    for seed, picture in enumerate(pictures):
        name = f"step {record.step}{' (best)' if best else ''}, seed {seed}"
        told = [
            f"{column} {record.pictures[column][seed]:.2f}"
            for column in ("both", "identity", "style")
            if column in record.pictures
        ]
        if record.pictures.get("copies", [0.0] * len(pictures))[seed]:
            told.append("a copy")
        height, width = picture.shape[-2:]
        scale = SIDE / max(height, width)
        sized = resize(picture, (round(height * scale), round(width * scale))).clamp(0, 1)
        yield Tile(sized, name, " ".join(told), MARKED if best else PLAIN)
