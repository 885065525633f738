"""Rendering ahead: training pictures in shards on disk, so that training never waits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .captions import caption
from .render import SIZE, render
from .seeds import Split, require_split
from .traits import identity_from_seed, pose_from_seed, style_from_seed

log = logging.getLogger(__name__)

SHARD = 2048
IDENTITIES = 6_000  # each is seen in as many styles as the data set has rounds


@dataclass(frozen=True)
class Shards:
    """Arrays on disk, opened without being read.

    images: (N, 3, H, W) uint8; labels: (N, H, W) uint8; landmarks: (N, 5, 2) float32 pixels.
    """

    images: list[NDArray[np.uint8]]
    labels: list[NDArray[np.uint8]]
    landmarks: list[NDArray[np.float32]]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.images)

    def pick(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pictures and labels of some doll numbers."""
        where = [divmod(int(i), SHARD) for i in index]
        images = np.stack([self.images[s][i] for s, i in where])
        labels = np.stack([self.labels[s][i] for s, i in where])
        return images, labels

    def points(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Landmarks of some doll numbers."""
        return np.stack([self.landmarks[s][i] for s, i in (divmod(int(i), SHARD) for i in index)])


def seeds_of(number: int) -> tuple[int, int, int]:
    """Identity, style and pose seed of the training doll with this number."""
    identity = number % IDENTITIES
    return (
        require_split(identity, Split.TRAIN),
        require_split(number, Split.TRAIN),
        require_split(number, Split.TRAIN),
    )


def captions_of(number: int, variants: int) -> list[str]:
    """Some of the many captions of a training doll."""
    identity, style, pose = seeds_of(number)
    parts = identity_from_seed(identity), style_from_seed(style), pose_from_seed(pose)
    rng = np.random.default_rng([*b"caption", number])
    return [caption(*parts, rng) for _ in range(variants)]


def prepare(folder: Path, count: int, size: int = SIZE) -> Shards:
    """Renders the shards that are missing for `count` dolls, then opens them all."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // SHARD)
    for shard in range(shards):
        if not (folder / f"labels_{shard:04d}.npy").exists():
            _render_shard(folder, shard, size)
            log.info("rendered shard %d of %d", shard + 1, shards)
    return load(folder, shards)


def load(folder: Path, count: int | None = None) -> Shards:
    """Opens the first `count` shards, or all there are."""
    count = count or len(list(folder.glob("labels_*.npy")))

    def arrays(kind: str) -> Iterator[NDArray[np.generic]]:
        for shard in range(count):
            yield np.load(folder / f"{kind}_{shard:04d}.npy", mmap_mode="r")

    return Shards(list(arrays("images")), list(arrays("labels")), list(arrays("landmarks")))  # type: ignore[arg-type]


def _render_shard(folder: Path, shard: int, size: int) -> None:
    images = np.empty((SHARD, 3, size, size), np.uint8)
    labels = np.empty((SHARD, size, size), np.uint8)
    landmarks = np.empty((SHARD, 5, 2), np.float32)
    for i in range(SHARD):
        identity, style, pose = seeds_of(shard * SHARD + i)
        doll = render(
            identity_from_seed(identity), style_from_seed(style), pose_from_seed(pose), size
        )
        images[i] = (doll.image * 255 + 0.5).astype(np.uint8)
        labels[i], landmarks[i] = doll.labels, doll.landmarks
    # Labels last: a shard counts as there once they are.
    for kind, array in (("images", images), ("landmarks", landmarks), ("labels", labels)):
        partial = folder / f"{kind}_{shard:04d}.part"
        with partial.open("wb") as file:
            np.save(file, array)
        os.replace(partial, folder / f"{kind}_{shard:04d}.npy")
