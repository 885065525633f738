"""Training of the networks that read dolls; the two identity embedders share only pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicapture.paperdoll.align import crops
from magicapture.paperdoll.attributes import ATTRIBUTES, UNSEEN, classes
from magicapture.paperdoll.drawing.traits import (
    BEARDS,
    GLASSES,
    MARKS,
    Identity,
    identity_from_seed,
    pose_from_seed,
    style_from_seed,
)
from magicapture.paperdoll.readers import (
    ConvEmbedder,
    FaceFinder,
    Parser,
    PatchEmbedder,
    Probe,
    StyleEmbedder,
    faces_in,
)

from .batch import Batch
from .dataset import IDENTITIES, Shards
from .loop import Plan, Trainer

# The loss trains with the first embedder; scores come from the second, which it has never seen.
EMBEDDERS = {"identity_loss": (ConvEmbedder, 11), "identity_score": (PatchEmbedder, 23)}
BATCH = 64
MODELS = {"finder": FaceFinder, "parser": Parser, "style": StyleEmbedder, "probe": Probe}
STEPS = {
    "identity_loss": 2_000,
    "identity_score": 900,
    "finder": 1_600,
    "parser": 9_000,
    "style": 700,
    "probe": 1_200,
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
        return losses(Batch(shards, index, rng, device, min(1.0, step / (0.2 * plan.steps))))

    trainer.run(loss_of, until)
    return trainer


_LossOf = Callable[[Batch], dict[str, Tensor]]


def _embedder(name: str) -> tuple[nn.Module, _LossOf]:
    make, _ = EMBEDDERS[name]
    rough = name == "identity_loss"  # it is shown estimates in the middle of a training
    # Traits, known here as they never are for people, start the embedder; likeness finishes it.
    table = trait_table(IDENTITIES)
    model = nn.ModuleDict({"embedder": make(), "traits": nn.Linear(128, table.shape[1])})

    def losses(batch: Batch) -> dict[str, Tensor]:
        faces = torch.cat([_faces(one, rough) for one in (batch, batch.namesakes())])
        with torch.autocast(batch.device.type, torch.bfloat16):
            vectors = model["embedder"](faces)
        people = torch.from_numpy(batch.seeds[:, 0].copy())
        guess = model["traits"](vectors.float())
        return {
            "identity": _matching(vectors[: len(people)], vectors[len(people) :], people, 1 / 16),
            "traits": F.mse_loss(guess, table[people].repeat(2, 1).to(guess.device)),
        }

    return model, losses


def _faces(batch: Batch, rough: bool) -> Tensor:
    shake = batch.rng.normal(0, 1.2, batch.points.shape).astype(np.float32)
    faces = crops(batch.images, batch.points + shake)
    return batch.estimated(faces) if rough else batch.varied(faces)


def _matching(first: Tensor, second: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) of pairs (B, D), (B, D); equal classes never oppose."""
    likeness = F.normalize(first.float()) @ F.normalize(second.float()).T / temperature
    pairs = torch.eye(len(classes), dtype=torch.bool)
    alike = (classes[:, None] == classes) & ~pairs
    likeness = likeness.masked_fill(alike.to(likeness.device), -torch.inf)
    truth = torch.arange(len(classes), device=likeness.device)
    return (F.cross_entropy(likeness, truth) + F.cross_entropy(likeness.T, truth)) / 2


def trait_table(count: int) -> Tensor:
    """The traits of the first faces as numbers of mean 0 and variance 1, (count, traits)."""
    table = torch.tensor([_numbers(identity_from_seed(seed)) for seed in range(count)])
    return (table - table.mean(0)) / table.std(0)


def _numbers(identity: Identity) -> list[float]:
    kinds = {"beard": BEARDS, "glasses": GLASSES, "mark": MARKS}
    found: list[float] = []
    for name, value in vars(identity).items():
        if name in kinds:
            found += [float(value == kind) for kind in kinds[name]]
        elif isinstance(value, tuple):
            found += value
        elif isinstance(value, float):
            found.append(value)
    return found


def _finder() -> tuple[nn.Module, _LossOf]:
    model = FaceFinder()

    def losses(batch: Batch) -> dict[str, Tensor]:
        pictures, target = batch.moved()
        with torch.autocast(batch.device.type, torch.bfloat16):
            guess, score = model(torch.cat([batch.varied(pictures), batch.faceless()]))
        there = torch.zeros_like(score)
        there[: len(pictures)] = 1.0
        found = F.binary_cross_entropy_with_logits(score, there)
        error = (guess[: len(pictures)].float() - target).abs().mean()
        return {"points": error / 4, "score": 0.2 * found}

    return model, losses


def _parser() -> tuple[nn.Module, _LossOf]:
    model = Parser()

    def losses(batch: Batch) -> dict[str, Tensor]:
        count = max(len(batch.index) // 4, 1)  # whole pictures cost more than faces
        with torch.autocast(batch.device.type, torch.bfloat16):
            logits = model(batch.varied(batch.images)[:count])
        return {"parts": F.cross_entropy(logits.float(), batch.labels[:count])}

    return model, losses


def _style() -> tuple[nn.Module, _LossOf]:
    model = StyleEmbedder()

    def losses(batch: Batch) -> dict[str, Tensor]:
        other = batch.neighbours()
        faces, theirs = faces_in(batch.labels), faces_in(other.labels)
        with torch.autocast(batch.device.type, torch.bfloat16):
            first = model(batch.varied(batch.images), faces)
            second = model(other.varied(other.images), theirs)
        styles = torch.from_numpy(batch.seeds[:, 1].copy())
        return {"style": _matching(first, second, styles, 1 / 10)}

    return model, losses


def _probe() -> tuple[nn.Module, _LossOf]:
    model = Probe()

    def losses(batch: Batch) -> dict[str, Tensor]:
        truth = [
            classes(identity_from_seed(i), style_from_seed(s), pose_from_seed(p))
            for i, s, p in batch.seeds.tolist()
        ]
        with torch.autocast(batch.device.type, torch.bfloat16):
            logits = model(batch.varied(batch.images))
        found = []
        for name in ATTRIBUTES:
            target = torch.tensor([one[name] for one in truth], device=batch.device)
            found.append(F.cross_entropy(logits[name].float(), target, ignore_index=UNSEEN))
        return {"attributes": torch.stack(found).nan_to_num().mean()}

    return model, losses
