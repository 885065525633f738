"""A batch of training dolls, varied as decoded pictures vary."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .dataset import IDENTITIES, Shards


class Batch:
    """Some training dolls on the device, and the random stream that varies them."""

    def __init__(
        self,
        shards: Shards,
        index: NDArray[np.int64],
        rng: np.random.Generator,
        device: torch.device,
        progress: float,
    ) -> None:
        images, labels = shards.pick(index)
        self.shards, self.index, self.rng = shards, index, rng
        self.seeds = shards.seeds_at(index)
        self.device, self.progress = device, progress
        self.images = torch.from_numpy(images).to(device).float() / 255
        self.labels = torch.from_numpy(labels).to(device).long()
        self.points = shards.points(index)

    def neighbours(self) -> Batch:
        """The same styles on other people in other poses."""
        return Batch(self.shards, self.index ^ 1, self.rng, self.device, self.progress)

    def namesakes(self) -> Batch:
        """The same people in other styles and poses; themselves where there is one doll each."""
        rounds = len(self.shards) // IDENTITIES
        index = self.index
        if rounds > 1:
            away = self.rng.integers(1, rounds, len(index)) * IDENTITIES
            index = (index + away) % (rounds * IDENTITIES)
        return Batch(self.shards, index, self.rng, self.device, self.progress)

    def number(self, low: float, high: float) -> Tensor:
        """One random number for each picture, (B, 1, 1, 1)."""
        values = self.rng.uniform(low, high, (len(self.index), 1, 1, 1)).astype(np.float32)
        return torch.from_numpy(values).to(self.device)

    def varied(self, images: Tensor) -> Tensor:
        """Pictures as a decoder might give them: other brightness, contrast, sharpness, noise."""
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * self.number(0.85, 1.15) + mean + self.number(-0.06, 0.06)
        small = F.interpolate(images, scale_factor=0.5, mode="area")
        soft = F.interpolate(small, images.shape[-2:], mode="bilinear")
        images = torch.lerp(images, soft, self.number(-0.5, 1.0).clamp(min=0))
        return self._noisy(images, 0.04)

    def estimated(self, images: Tensor) -> Tensor:
        """Pictures as estimates of x0 under strong noise: blurred, faded, off in colour, rough.

        A network that was never shown such pictures is satisfied by stripes that no face has; one
        that always has colours, by a blue smear for blue eyes, in a grey picture too.
        """
        grey = images.mean(1, keepdim=True)
        images = torch.lerp(images, grey, self.number(-1.0, 2.0).clamp(0, 1))
        tint = torch.cat([self.number(-0.12, 0.12) for _ in range(3)], 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * self.number(0.4, 1.3) + mean + tint
        soft = images
        for factor in (2, 4, 8):  # each picture as soft as its own draws say
            small = F.interpolate(soft, scale_factor=1 / factor, mode="area")
            wide = F.interpolate(small, images.shape[-2:], mode="bilinear")
            soft = torch.lerp(soft, wide, self.number(-1.0, 1.0).clamp(min=0))
        return self._noisy(soft, 0.15)

    def _noisy(self, images: Tensor, most: float) -> Tensor:
        """Pictures with noise of up to this deviation, each its own."""
        noise = torch.from_numpy(self.rng.standard_normal(images.shape, np.float32))
        return (images + noise.to(self.device) * self.number(0, most)).clamp(0, 1)

    def faceless(self) -> Tensor:
        """As many pictures without a face: corners, noise coarse and fine, dolls in pieces.

        A network shown corners alone took the noise of an untrained model for faces.
        """
        size = self.images.shape[-1]
        quarter, piece = size // 4, size // 8
        corners = F.interpolate(self.images[0::3, :, :quarter, :quarter], (size, size))
        width = int(self.rng.choice([size // 16, size // 4, size // 2, size]))
        shape = (len(self.images[1::3]), 3, width, width)
        noise = torch.from_numpy(self.rng.standard_normal(shape, np.float32)).to(self.device)
        noise = F.interpolate(0.5 + noise * self.number(0.05, 0.6)[1::3], (size, size))
        pieces = F.unfold(self.images[2::3], piece, stride=piece)
        order = torch.from_numpy(self.rng.permutation(pieces.shape[-1])).to(self.device)
        pieces = F.fold(pieces[..., order], (size, size), piece, stride=piece)
        return torch.cat([corners, noise.clamp(0, 1), pieces])

    def moved(self) -> tuple[Tensor, Tensor]:
        """Pictures in other places and sizes, and where their landmarks went, (B, 5, 2) pixels."""
        size = self.images.shape[-1]
        zoom = self.number(0.75, 1.5)
        shift = torch.cat([self.number(-0.2, 0.2), self.number(-0.2, 0.2)], -1).flatten(1)
        matrix = torch.zeros(len(zoom), 2, 3, device=self.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = zoom.flatten()
        matrix[:, :, 2] = shift
        grid = F.affine_grid(matrix, list(self.images.shape), align_corners=False)
        pictures = F.grid_sample(self.images, grid, padding_mode="reflection", align_corners=False)
        places = (2 * torch.from_numpy(self.points).to(self.device) + 1) / size - 1
        places = (places - shift[:, None]) / zoom.view(-1, 1, 1)
        return pictures, (places + 1) * size / 2 - 0.5
