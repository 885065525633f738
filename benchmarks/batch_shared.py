"""Stages of `batch_scale.py` about what jobs have in common: photos, and prompts' first words."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from doll_photos import photos, portraits, write
from random_models import FULL, build

from magicapture.batch import Job, Need, read_jobs
from magicapture.cli.batch_jobs import JobReader, TrainLoader
from magicapture.latents import LatentMemory
from magicapture.losses import tasks_of
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.planning import noise_job
from magicapture.planning.ledger import Ledger, fake_mode, faked
from magicapture.planning.rehearsal import rehearse
from magicapture.prompts import prompt_for
from magicapture.recipes import recipe
from magicapture.tokens import Prompt
from magicapture.training import Trainer
from magicapture.training.prepare import token_vectors

VARIANTS, ROUNDS = 4, 3  # of a photo, and of the stage "shared"


def shared(out: Path) -> dict[str, Any]:
    """Prepare a job alone, after one of the same person, and after one of all the same photos."""
    write(photos(2_000_000, 10, 128), out / "person")
    for number in range(2):
        write(portraits(2_000_500 + 1000 * number, 10, 128), out / f"style{number}")
    defaults = {"base": str(WEIGHTS), "face_model": "none", "person": "person", "style": "style0"}
    lines = [{"out": "first"}, {"out": "style", "style": "style1"}, {"out": "rank", "rank": 4}]
    file = out / "jobs.yaml"
    defaults |= {"resolution": 128, "set": {"variants": VARIANTS}}
    file.write_text(yaml.safe_dump({"defaults": defaults, "jobs": lines}))
    first, style, rank = read_jobs(file, JobReader(out))
    loader, spent = TrainLoader(Need()), dict[str, list[tuple[float, int]]]()
    for _ in range(ROUNDS):
        for name, job, before in (
            ("alone", style, None),
            ("the same person in another style", style, first),
            ("alone, another rank", rank, None),
            ("the same photos, another rank", rank, first),
        ):
            memory = LatentMemory()
            if before is not None:
                prepare(loader, before, memory)
            spent.setdefault(name, []).append(prepare(loader, job, memory))
    return {
        name: {**told([cpu for cpu, _ in runs]), "batches": runs[0][1]}
        for name, runs in spent.items()
    }


def prepare(loader: TrainLoader, job: Job, memory: LatentMemory) -> tuple[float, int]:
    """Seconds of a core from a job with its models to step 1, and batches that were encoded."""
    training, _ = loader.open(job)
    assert training.backbone is not None
    training.backbone.latents, encoded = memory, memory.encoded
    began = time.process_time()
    with Trainer.open(training.job, training.backbone):
        return time.process_time() - began, memory.encoded - encoded


def words() -> dict[str, Any]:
    """Operations of the default's steps at Stable Diffusion 1.5's shapes, and of the text encoder.

    prefix: columns before the first token, where a frozen encoder says the same in every step.
    """
    backbone = build(FULL, torch.device("cpu"), torch.bfloat16)
    job = noise_job(recipe("magicapture"), 512).fitted(backbone.family)
    vectors = token_vectors(job, backbone)
    prompt = Prompt(prompt_for(job.concepts, job.recipe.prompts))
    line = backbone.layout("clip_l", prompt, vectors)
    with backbone.training(None):
        phases = rehearse(job, backbone).phases
        encoders = [*backbone.text_encoders.values(), vectors]
        with faked(encoders, fake_mode()) as fakes, torch.no_grad(), Ledger(fakes) as ledger:
            backbone.encode_prompts([prompt], vectors)
    return {
        "prompt": ledger.flops,
        "prefix": min(column for columns in line.columns.values() for column in columns),
        "length": len(line.ids),
        "phases": {
            own.name: [of.flops, len(tasks_of(own, job.recipe))]
            for own, of in zip(job.recipe.phases, phases, strict=True)
        },
    }


def told(values: Sequence[float]) -> dict[str, float]:
    """Mean, its standard error, and median."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.fmean(values), 4),
        "error": round(spread / len(values) ** 0.5, 4),
        "median": round(statistics.median(values), 4),
    }
