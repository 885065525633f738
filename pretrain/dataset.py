"""Rendering ahead: training pictures in shards on disk, so that training never waits."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from magicapture.paperdoll import (
    SIZE,
    Split,
    identity_from_seed,
    pose_from_seed,
    render,
    require_split,
    style_from_seed,
)
from magicapture.paperdoll.captions import caption

log = logging.getLogger(__name__)
_T = TypeVar("_T", bound=np.generic)

SHARD = 2048
IDENTITIES = 6_000  # faces in training; each is seen about ten times
_KINDS = ("images", "landmarks", "seeds", "labels")


@dataclass(frozen=True)
class Shards:
    """Dolls on disk, opened without being read; one array a shard.

    images: (N, 3, H, W) uint8; labels: (N, H, W) uint8; landmarks: (N, 5, 2) float32 pixels;
    seeds: (N, 3) int64 of identity, style and pose.
    """

    images: list[NDArray[np.uint8]]
    landmarks: list[NDArray[np.float32]]
    seeds: list[NDArray[np.int64]]
    labels: list[NDArray[np.uint8]]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.images)

    def pick(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pictures and labels of some doll numbers."""
        return _rows(self.images, index), _rows(self.labels, index)

    def points(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Landmarks of some doll numbers."""
        return _rows(self.landmarks, index)

    def seeds_at(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Identity, style and pose seeds (N, 3) of some doll numbers."""
        return _rows(self.seeds, index)


def seeds_of(number: int) -> tuple[int, int, int]:
    """Identity, style and pose seed of a training doll; two neighbours share their style."""
    seeds = number % IDENTITIES, number // 2, number
    identity, style, pose = (require_split(seed, Split.TRAIN) for seed in seeds)
    return identity, style, pose


def captions_of(seeds: Sequence[int], variants: int) -> list[str]:
    """Some of the many captions of the doll with these seeds."""
    identity, style, pose = (int(seed) for seed in seeds)
    parts = identity_from_seed(identity), style_from_seed(style), pose_from_seed(pose)
    rng = np.random.default_rng([*b"caption", identity, style, pose])
    return [caption(*parts, rng) for _ in range(variants)]


def prepare(folder: Path, count: int, size: int = SIZE, workers: int = 1) -> Shards:
    """Renders the shards that are missing for `count` dolls, then opens them all."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // SHARD)
    missing = [shard for shard in range(shards) if not _file(folder, "labels", shard).exists()]
    make = partial(_render_shard, folder, size, SHARD)
    if workers > 1 and missing:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(make, missing))
    else:
        for shard in missing:
            make(shard)
    return load(folder, shards)


def load(folder: Path, count: int | None = None) -> Shards:
    """Opens the first `count` shards, or all there are."""
    count = count or len(list(folder.glob("labels_*.npy")))
    arrays = {
        kind: [np.load(_file(folder, kind, shard), mmap_mode="r") for shard in range(count)]
        for kind in _KINDS
    }
    return Shards(**arrays)


def _rows(shards: list[NDArray[_T]], index: NDArray[np.int64]) -> NDArray[_T]:
    size = len(shards[0])
    return np.stack([shards[i // size][i % size] for i in index.tolist()])


def _file(folder: Path, kind: str, shard: int) -> Path:
    return folder / f"{kind}_{shard:04d}.npy"


def _render_shard(folder: Path, size: int, count: int, shard: int) -> None:
    seeds = np.array([seeds_of(shard * count + i) for i in range(count)], np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "images": np.empty((count, 3, size, size), np.uint8),
        "landmarks": np.empty((count, 5, 2), np.float32),
        "seeds": seeds,
        "labels": np.empty((count, size, size), np.uint8),
    }
    for i, (identity, style, pose) in enumerate(seeds.tolist()):
        parts = identity_from_seed(identity), style_from_seed(style), pose_from_seed(pose)
        doll = render(*parts, size)
        arrays["images"][i] = (doll.image * 255 + 0.5).astype(np.uint8)
        arrays["labels"][i], arrays["landmarks"][i] = doll.labels, doll.landmarks
    for kind in _KINDS:  # labels last: a shard counts as there once they are
        unfinished = _file(folder, kind, shard).with_suffix(".part")
        with unfinished.open("wb") as stream:
            np.save(stream, arrays[kind])
        os.replace(unfinished, _file(folder, kind, shard))
    log.info("rendered shard %d", shard)
