"""A plan: what a training needs and how long it takes, in words, before step 1."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..backbone import Backbone
from ..config import OptimizerName
from ..dino import Dino
from ..environment import device_name
from ..errors import GpuOutOfMemoryError, OutOfMemoryError
from ..faces.embed import FaceEmbedder, name_of
from ..losses import needs
from ..training import TrainingJob
from ..training.prepare import on_device
from ..training.trainer import DTYPES
from .footprint import (
    SLACK,
    Footprint,
    duration,
    followed,
    gigabytes,
    peak_bytes,
    previews,
    program_bytes,
    tensor_bytes,
)
from .records import (
    Record,
    Records,
    dino_key,
    face_share,
    models_key,
    settings_key,
    with_steps,
)
from .room import GPU, Room, room

logger = logging.getLogger(__name__)

MARGIN = 1.15
"""A training is refused where it needs more than this times all the memory that there is."""

NEARLY = 0.95
"""A training fits where it needs at most this share of the memory that it can have."""


_ARITHMETIC = "That is arithmetic, until a step of it has run here."


@dataclass(frozen=True)
class Plan:
    """What a training takes on a device.

    record: of its shapes and settings, with what was measured. speed: FLOPs a second on the device,
    None where no step has run. program: bytes held beside the weights. room: None where unknown.
    """

    record: Record
    optimizer: OptimizerName
    speed: float | None
    slack: float
    program: int
    room: Room | None
    preview_every: int = 0

    @property
    def footprint(self) -> Footprint:
        """What it takes, by its parts."""
        return self.record.footprint

    @property
    def needs(self) -> int:
        """Bytes at the most."""
        return peak_bytes(self.footprint, self.optimizer, self.program, self.slack)

    @property
    def seconds(self) -> float | None:
        """From step 1 to the end, previews among it; None where no step has run on the device."""
        return self.seconds_left()

    def seconds_left(
        self, done: int = 0, measured: Mapping[str, float] | None = None
    ) -> float | None:
        """From a step to the end; measured: seconds of a step by phase, in place of those kept."""
        known = {**self.record.seconds, **(measured or {})}
        speed = self._speed(known)
        if speed is None:
            return None
        left, first, steps = 0.0, 0, sum(phase.steps for phase in self.footprint.phases)
        for phase in self.footprint.phases:
            remaining = min(phase.steps, max(0, first + phase.steps - done))
            left += remaining * known.get(phase.name, phase.flops / speed)
            first += phase.steps
        drawn = previews(steps, self.preview_every) - done // max(1, self.preview_every)
        return left + (drawn * self.footprint.drawn / speed if self.preview_every else 0.0)

    def _speed(self, known: Mapping[str, float]) -> float | None:
        """FLOPs a second: of the dearest phase that was measured, else that kept of the device."""
        speeds = {
            p.flops: p.flops / known[p.name] for p in self.footprint.phases if p.name in known
        }
        return speeds[max(speeds)] if speeds else self.speed

    @property
    def fits(self) -> bool:
        """Whether it needs no more than the memory that it can have; also where that is unknown."""
        return self.room is None or self.needs <= NEARLY * self.room.reach

    @property
    def cannot(self) -> bool:
        """Whether it needs more than there is, by more than the error of a prediction."""
        return self.room is not None and self.needs > MARGIN * self.room.total

    def line(self) -> str:
        """ "Training needs about 7.6 GB; this GPU has 24.0 GB. About 41 minutes." and whence."""
        had = f"; {self.room.what} has {gigabytes(self.room.total)}" if self.room else ""
        text = f"Training needs about {gigabytes(self.needs)}{had}."
        if self.seconds is None:
            return f"{text} {_ARITHMETIC} How long it takes is known after ten steps."
        text = f"{text} About {duration(self.seconds)}."
        return text if self.record.slack is not None else f"{text} {_ARITHMETIC}"

    def shortage(self) -> str | None:
        """A sentence where it does not fit, None where it does."""
        if self.fits or self.room is None:
            return None
        if self.needs > self.room.total:
            return f"Training needs about {gigabytes(self.needs)}, more than {self.room.what} has."
        return (
            f"Training needs about {gigabytes(self.needs)}, and of the memory of {self.room.what} "
            f"only {gigabytes(self.room.reach)} are left beside other programs."
        )

    def refuse(self, advice: str) -> None:
        """Raise where it cannot run; advice: what to do then."""
        if not self.cannot:
            return
        assert self.room is not None
        kind = GpuOutOfMemoryError if self.room.what == GPU else OutOfMemoryError
        raise kind(
            f"Training needs about {gigabytes(self.needs)}; {self.room.what} has "
            f"{gigabytes(self.room.total)}. {advice}"
        )


def planned(
    job: TrainingJob,
    backbone: Backbone,
    embedder: FaceEmbedder | None = None,
    *,
    records: Records | None = None,
    dino: Dino | None = None,
    dtype: torch.dtype | None = None,
    preview_every: int = 0,
) -> Plan:
    """What a job takes on a backbone: as it is known of the same shapes and settings, or rehearsed.

    dtype: of the frozen models, in place of the recipe's precision. The models are loaded as for
    training meanwhile, and nothing is computed.
    """
    records, job = records or Records(), job.fitted(backbone.family)
    wanted = needs(job.recipe)
    embedder = embedder if "face model" in wanted else None
    dino = dino if "dino" in wanted else None
    device = device_name(backbone.device)
    models = models_key(device, backbone, dtype)
    faces = max(face_share(photo) for of in job.learnables for photo in of.photos)
    parts = f"{name_of(embedder)} {backbone.has_fast_decoder} {job.concepts[0].vectors}"
    if dino is not None:
        parts += f" {dino_key(dino)} {job.recipe.dino.min_snr}"
    key = settings_key(models, job.recipe, faces, parts)
    if (record := records.get(key)) is None:
        from .rehearsal import rehearse  # PyTorch's fake tensors take a while to import

        with (
            backbone.training(None if dtype else DTYPES[job.recipe.precision]),
            on_device(embedder, backbone.device),
            on_device(dino, backbone.device),
        ):
            footprint = rehearse(job, backbone, embedder, dtype, dino)
        record = Record(key, models, device, footprint, {})
        records.keep(record)
    record = replace(record, footprint=with_steps(record.footprint, job.recipe))
    here = room(backbone.device)
    networks = [*backbone.modules.values(), *followed(embedder, dino)]
    weights = tensor_bytes(t for network in networks for t in network.parameters())
    return Plan(
        record,
        job.recipe.optimizer,
        records.speed(device, models),
        record.slack or SLACK,
        program_bytes(here, weights),
        here,
        preview_every,
    )


def attempted(
    job: TrainingJob,
    backbone: Backbone,
    embedder: FaceEmbedder | None,
    dino: Dino | None = None,
    preview_every: int = 0,
) -> Plan | None:
    """`planned`, or None where a network does not run on fake weights: no reason not to train.

    What is wrong with the job is left to the training to say.
    """
    try:
        return planned(job, backbone, embedder, dino=dino, preview_every=preview_every)
    except Exception as error:  # of whatever is in the networks, and of PyTorch's own tools
        logger.info("What this training needs is not known before its steps have run.")
        logger.debug("The rehearsal failed.", exc_info=error)
        return None
