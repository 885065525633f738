"""Training of the networks that read dolls; the two identity embedders share only pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .align import crops
from .attributes import ATTRIBUTES, UNSEEN, classes
from .canvas import FACE_LABELS
from .dataset import IDENTITIES, Shards
from .loop import Plan, Trainer
from .readers import (
    PARTS,
    ConvEmbedder,
    FaceFinder,
    Margin,
    Parser,
    PatchEmbedder,
    Probe,
    StyleEmbedder,
)
from .traits import identity_from_seed, pose_from_seed, style_from_seed

# The loss trains with the first embedder; scores come from the second, which it has never seen.
EMBEDDERS = {"identity_loss": (ConvEmbedder, 11), "identity_score": (PatchEmbedder, 23)}
BATCH = 64
MODELS = {"finder": FaceFinder, "parser": Parser, "style": StyleEmbedder, "probe": Probe}
STEPS = {
    "identity_loss": 6_000,
    "identity_score": 6_000,
    "finder": 3_000,
    "parser": 3_000,
    "style": 3_000,
    "probe": 3_000,
}


def plan_of(name: str, steps: int | None = None) -> Plan:
    """The usual plan of a reader."""
    seed = EMBEDDERS[name][1] if name in EMBEDDERS else 0
    return Plan(steps=steps or STEPS[name], rate=1e-3, decay=0.5, weight_decay=0.05, seed=seed)


def train(
    name: str,
    shards: Shards,
    out: Path,
    device: torch.device,
    plan: Plan,
    batch: int = BATCH,
    until: float | None = None,
) -> Trainer:
    """Trains one reader: identity_loss, identity_score, finder, parser, style or probe."""
    torch.manual_seed(plan.seed)
    makers = {"finder": _finder, "parser": _parser, "style": _style, "probe": _probe}
    model, losses = _embedder(name) if name in EMBEDDERS else makers[name]()
    model.to(device)
    trainer = Trainer(name, model, plan, out)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(1 << 31, (1,), generator=generator)))
        index = rng.integers(len(shards), size=batch)
        return losses(_Batch(shards, index, rng, device, min(1.0, step / (0.2 * plan.steps))))

    trainer.run(loss_of, until)
    return trainer


class _Batch:
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
        self.device, self.progress = device, progress
        self.images = torch.from_numpy(images).to(device).float() / 255
        self.labels = torch.from_numpy(labels).to(device).long()
        self.points = shards.points(index)

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
        noise = self.rng.standard_normal(images.shape, np.float32)
        return (images + torch.from_numpy(noise).to(self.device) * self.number(0, 0.04)).clamp(0, 1)


_LossOf = Callable[[_Batch], dict[str, Tensor]]


def _embedder(name: str) -> tuple[nn.Module, _LossOf]:
    make, _ = EMBEDDERS[name]
    embedder, head = make(), Margin(IDENTITIES, 128)
    model = nn.ModuleDict({"embedder": embedder, "margin": head})

    def losses(batch: _Batch) -> dict[str, Tensor]:
        shake = batch.rng.normal(0, 1.2, batch.points.shape).astype(np.float32)
        faces = crops(batch.varied(batch.images), batch.points + shake)
        classes = torch.from_numpy(batch.shards.seeds_at(batch.index)[:, 0].copy()).to(batch.device)
        with torch.autocast(batch.device.type, torch.bfloat16):
            vectors = embedder(faces)
        # The margin grows: at full size from the start it keeps a small network from starting.
        margin = head.margin * batch.progress
        return {"identity": head(vectors, classes, margin)}

    return model, losses


def _finder() -> tuple[nn.Module, _LossOf]:
    model = FaceFinder()

    def losses(batch: _Batch) -> dict[str, Tensor]:
        size = batch.images.shape[-1]
        zoom, dx, dy = batch.number(0.75, 1.5), batch.number(-0.2, 0.2), batch.number(-0.2, 0.2)
        zero = torch.zeros_like(zoom)
        rows = [torch.cat([zoom, zero, dx], -1), torch.cat([zero, zoom, dy], -1)]
        grid = F.affine_grid(
            torch.cat(rows, 1)[..., 0, :].view(-1, 2, 3),
            list(batch.images.shape),
            align_corners=False,
        )
        moved = F.grid_sample(batch.images, grid, padding_mode="reflection", align_corners=False)
        points = torch.from_numpy(batch.points).to(batch.device)
        shift = torch.cat([dx, dy], -1).view(-1, 1, 2)
        unit = (2 * points + 1) / size - 1
        target = ((unit - shift) / zoom.view(-1, 1, 1) + 1) * size / 2 - 0.5
        empty = F.interpolate(batch.images[::2, :, : size // 4, : size // 4], (size, size))
        pictures = batch.varied(moved)
        with torch.autocast(batch.device.type, torch.bfloat16):
            guess, there = model(pictures)
            _, absent = model(empty)
        score = F.binary_cross_entropy_with_logits(
            torch.cat([there, absent]),
            torch.cat([torch.ones_like(there), torch.zeros_like(absent)]),
        )
        return {"points": (guess.float() - target).abs().mean() / 4, "score": 0.2 * score}

    return model, losses


def _parser() -> tuple[nn.Module, _LossOf]:
    model = Parser()
    rare = torch.ones(PARTS)
    rare[2:14] = 2.0

    def losses(batch: _Batch) -> dict[str, Tensor]:
        count = max(len(batch.index) // 4, 1)  # whole pictures cost more than faces
        with torch.autocast(batch.device.type, torch.bfloat16):
            logits = model(batch.varied(batch.images)[:count])
        weight = rare.to(batch.device)
        return {"parts": F.cross_entropy(logits.float(), batch.labels[:count], weight)}

    return model, losses


def _style() -> tuple[nn.Module, _LossOf]:
    model = StyleEmbedder()
    parts = torch.tensor(sorted(FACE_LABELS))

    def losses(batch: _Batch) -> dict[str, Tensor]:
        others, masks = _same_style(batch)
        own = torch.isin(batch.labels, parts.to(batch.device)).float()[:, None]
        with torch.autocast(batch.device.type, torch.bfloat16):
            first = model(batch.varied(batch.images), own)
            second = model(batch.varied(others), masks)
        a, b = F.normalize(first.float()), F.normalize(second.float())
        likeness = a @ b.T / 0.1
        truth = torch.arange(len(a), device=a.device)
        loss = F.cross_entropy(likeness, truth) + F.cross_entropy(likeness.T, truth)
        return {"style": loss / 2}

    return model, losses


def _probe() -> tuple[nn.Module, _LossOf]:
    model = Probe()

    def losses(batch: _Batch) -> dict[str, Tensor]:
        seeds = batch.shards.seeds_at(batch.index).tolist()
        truth = [
            classes(identity_from_seed(i), style_from_seed(s), pose_from_seed(p))
            for i, s, p in seeds
        ]
        with torch.autocast(batch.device.type, torch.bfloat16):
            logits = model(batch.varied(batch.images))
        found = []
        for name in ATTRIBUTES:
            target = torch.tensor([one[name] for one in truth], device=batch.device)
            found.append(F.cross_entropy(logits[name].float(), target, ignore_index=UNSEEN))
        return {"attributes": torch.stack(found).nan_to_num().mean()}

    return model, losses


def _same_style(batch: _Batch) -> tuple[Tensor, Tensor]:
    """The batch's styles on other people in other poses: pictures and face masks."""
    images, labels = batch.shards.pick(batch.index ^ 1)
    masks = np.isin(labels, sorted(FACE_LABELS))[:, None].astype(np.float32)
    pictures = torch.from_numpy(images).to(batch.device).float() / 255
    return pictures, torch.from_numpy(masks).to(batch.device)
