"""A training without values: each phase's step run on fake weights, for its bytes and FLOPs.

It is the trainer's own step, with the losses, checkpoints and taps of the recipe and the photos'
own faces, so that no formula of any network's layers is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..config import Phase, Recipe
from ..data import LatentCache, Learnable
from ..data.cache import encoded_at_once
from ..dino import Dino
from ..faces.embed import FaceEmbedder, alignment_of
from ..families import FAMILIES
from ..identity import ColourBlind, IdentityLoss
from ..losses import needs, tasks_of
from ..prompts import prompt_for
from ..things import DinoLook
from ..tokens import Prompt
from ..training import Trainer, TrainingJob
from ..training.batches import Batches
from ..training.job import generator
from ..training.prepare import Materials, token_vectors
from .footprint import (
    DRAWING_STEPS,
    Footprint,
    StepCost,
    followed,
    mean_flops,
    tensor_bytes,
)
from .ledger import Ledger, fake_mode, faked
from .records import face_share

_CLEAN = 0.02
"""Share of the noise levels at which the rehearsed rows are: all losses act there."""

_WITH_BACKWARD, _DINO = 2.0, 1.5
"""What a term costs over its forward pass. Frozen networks' backward pass is as dear as the forward
one; of DINO's two pictures, the estimate and the photo, one has it."""


def rehearse(
    job: TrainingJob,
    backbone: Backbone,
    embedder: FaceEmbedder | None = None,
    dtype: torch.dtype | None = None,
    dino: Dino | None = None,
) -> Footprint:
    """What a training takes, found without computing anything; inside of `backbone.training`.

    job: fitted to the backbone's family. embedder, dino: on the backbone's device. dtype: of the
    frozen models, if not their own. The words loss and a prior count as if they acted in every
    step; of a face embedder in TorchScript, which has no shapes to follow, the decoder alone.
    """
    pictures = max(len(of.photos) for of in job.learnables) * max(1, job.recipe.variants)
    job, one_task = replace(job, recipe=_whole(job.recipe)), job.recipe.batching == "one_task"
    networks, job = _Networks.of(backbone, (embedder, dino), dtype), job.with_landmarks()
    if embedder is not None and embedder not in networks.kept:
        embedder = _Averaged(embedder)
    judges = _Judges(embedder, dino)
    materials = Materials(token_vectors(job, backbone), _batches(job, backbone), None, "")
    trainer = Trainer(job, backbone, materials, lambda event: None)
    costs = []
    for phase in job.recipe.phases:
        if phase.steps:
            cost = _step(trainer, phase, judges, networks)
            tasks = len(tasks_of(phase, job.recipe)) if one_task else 1
            costs.append(replace(cost, flops=cost.flops // tasks))
    with networks.faked(materials.vectors) as fakes, torch.no_grad():
        here = backbone.device.type  # weights that wait elsewhere are brought over at each use
        weights = tensor_bytes(fake for fake in fakes if fake.device.type == here)
        encoding = _pass(fakes, lambda: _encode(backbone, job.recipe.side, pictures))
        network = _pass(fakes, lambda: _predict(trainer, rows=2))
        decoding = _pass(fakes, lambda: backbone.decode_fast(_latents(trainer, rows=1)))
    drawn = DRAWING_STEPS * network.flops + decoding.flops
    drawing = max(network.peak, decoding.peak)
    return Footprint(weights, encoding.peak, drawing, drawn, tuple(costs))


@dataclass(frozen=True)
class _Networks:
    """Those that are cast to a dtype, where there is one, and those that keep their own."""

    cast: Sequence[nn.Module]
    kept: Sequence[nn.Module]
    dtype: torch.dtype | None

    @classmethod
    def of(
        cls, backbone: Backbone, judges: Sequence[object], dtype: torch.dtype | None
    ) -> _Networks:
        """A backbone's, as `Backbone.training` casts them, and of the judges those with shapes."""
        parts = dict(backbone.modules)
        kept = [] if FAMILIES[backbone.family].half_vae else [parts.pop("vae")]
        return cls(list(parts.values()), [*kept, *followed(*judges)], dtype)

    @contextmanager
    def faked(self, vectors: nn.Module) -> Iterator[list[Tensor]]:
        """All of them, and the token vectors, with fake weights."""
        mode = fake_mode()
        with (
            faked([*self.kept, vectors], mode) as kept,
            faked(self.cast, mode, self.dtype) as cast,
        ):
            yield [*kept, *cast]


def _whole(recipe: Recipe) -> Recipe:
    """The recipe with each task in every step, and no photo encoded before it is asked for."""
    turns = "in_turn" if recipe.batching == "one_task" else recipe.batching
    words, empty = replace(recipe.words, every=1), replace(recipe.unconditional, every=1)
    return replace(recipe, batching=turns, words=words, unconditional=empty, variants=0)


def _batches(job: TrainingJob, backbone: Backbone) -> Batches:
    """Batches whose latents are zeros, of the photo of each whose face is the largest."""
    cells = job.recipe.side // backbone.downscale

    def zeros(images: Tensor) -> Tensor:
        return torch.zeros(len(images), backbone.latent_channels, cells, cells)

    def encoded(learnable: Learnable) -> LatentCache:
        largest = max(learnable.photos.photos, key=face_share)
        photos = replace(learnable.photos, photos=(largest,))
        return LatentCache(photos, job.recipe, zeros, downscale=backbone.downscale, seed=0)

    source, reference = map(encoded, job.learnables)
    prior = zeros(torch.empty(1)) if "class images" in needs(job.recipe) else None
    levels = backbone.schedule.levels
    return Batches(job.recipe, levels, *job.concepts, source, reference, None, prior)


@dataclass(frozen=True)
class _Judges:
    """What looks at decoded pictures: a face embedder, DINO, or neither."""

    embedder: FaceEmbedder | None
    dino: Dino | None

    def terms(self, trainer: Trainer, phase: Phase) -> tuple[IdentityLoss | None, DinoLook | None]:
        """What a phase asks of them; inside of the fake weights."""
        backbone, wanted, identity, look = trainer.backbone, needs(phase), None, None
        if self.embedder is not None and "face model" in wanted:
            identity = _judge(backbone, trainer.recipe, self.embedder)
        if self.dino is not None and "dino" in wanted:
            look = DinoLook(self.dino, backbone.decode_fast, [_latents(trainer, rows=1)])
        return identity, look


def _step(trainer: Trainer, phase: Phase, judges: _Judges, networks: _Networks) -> StepCost:
    """One step of a phase, of rows so clean that all losses act."""
    backbone, recipe = trainer.backbone, trainer.recipe
    rows = trainer.materials.batches.rows(phase, generator(trainer.job.seed, "rehearsal"))
    rows = [replace(row, timestep=backbone.schedule.levels.at(_CLEAN)) for row in rows]
    chunks = [[row] for row in rows] if recipe.batching == "in_turn" else [rows]
    faces, things = list[int](), list[int]()
    with trainer.opened(phase) as objective, networks.faked(trainer.vectors) as fakes:
        identity, look = judges.terms(trainer, phase)
        with Ledger(fakes) as ledger:
            if identity is not None:
                objective = replace(objective, identity=ledger.counting(identity, faces.append))
            if look is not None:
                objective = replace(objective, dino=ledger.counting(look, things.append))
            for chunk in chunks * min(2, recipe.accumulation):  # the second finds gradients there
                total = objective(chunk).total
                if total.requires_grad:  # a row of the identity loss alone may have no loss
                    total.backward()
                del total
        trained = sum(fake.numel() for fake in fakes if fake.grad is not None)
    flops = mean_flops(
        ledger.flops,
        (_WITH_BACKWARD * sum(faces), _identity_acts(backbone, phase, recipe)),
        (_DINO * sum(things), _acts(backbone, phase, recipe.snr(recipe.dino.min_snr))),
    )
    flops = flops * recipe.accumulation // min(2, recipe.accumulation)
    return StepCost(phase.name, phase.steps, trained, ledger.peak, flops)


def _judge(backbone: Backbone, recipe: Recipe, embedder: FaceEmbedder) -> IdentityLoss:
    """The identity loss against a target that is no one's."""
    if recipe.identity.colour_blind:
        embedder = ColourBlind(embedder)
    side = alignment_of(embedder).size
    with torch.no_grad():
        width = embedder(torch.zeros(1, 3, side, side, device=backbone.device)).shape[-1]
    target = torch.ones(1, width)
    return IdentityLoss(embedder, backbone.decode_fast, backbone.downscale, target, recipe.identity)


def _identity_acts(backbone: Backbone, phase: Phase, recipe: Recipe) -> float:
    """The share of a phase's steps in which the identity loss acts."""
    if recipe.identity.separate_pass:
        return 1.0
    return _acts(backbone, phase, recipe.snr(recipe.identity.min_snr))


def _acts(backbone: Backbone, phase: Phase, min_snr: float) -> float:
    """The share of a phase's steps that are at so high a signal-to-noise ratio."""
    levels = backbone.schedule.levels
    typical = levels.typical()
    drawn = typical[typical <= levels.at(phase.share)]
    return float((drawn < levels.limit(min_snr)).float().mean())


def _pass(fakes: Sequence[Tensor], run: Callable[[], object]) -> Ledger:
    with Ledger(fakes) as ledger:
        run()
    return ledger


def _latents(trainer: Trainer, rows: int) -> Tensor:
    latents = trainer.materials.batches.reference.any(generator(0, "rehearsal")).latents
    return latents.expand(rows, -1, -1, -1).to(trainer.backbone.device)


def _encode(backbone: Backbone, side: int, pictures: int) -> None:
    backbone.encode(torch.zeros(min(encoded_at_once(side), pictures), 3, side, side))


def _predict(trainer: Trainer, rows: int) -> None:
    """One pass as a sampler asks for it, of a prompt and of a negative one."""
    backbone = trainer.backbone
    prompt = Prompt(prompt_for(trainer.job.concepts, trainer.recipe.prompts))
    conditioning = backbone.encode_prompts([prompt] * rows, trainer.vectors)
    level = torch.tensor([backbone.schedule.levels.at(_CLEAN)] * rows, device=backbone.device)
    backbone.predict(_latents(trainer, rows), level, conditioning)


class _Averaged:
    """Stands for a face embedder that fake tensors do not run through."""

    def __init__(self, embedder: FaceEmbedder) -> None:
        self.alignment = alignment_of(embedder)

    def __call__(self, faces: Tensor) -> Tensor:
        return faces.mean(dim=(2, 3))
