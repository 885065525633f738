"""Short runs whose losses and adapters are on record: a restructuring leaves every bit as it was.

Where the record was made on another processor or with another PyTorch, rounding differs, and the
numbers are compared closely instead. To record anew, after a change that is meant to change
numbers and says so: `MAGICAPTURE_RECORD=1 pytest tests/core/training/test_golden.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.backbones import load_backbone
from magicapture.config import PriorSettings, Recipe
from magicapture.data import Learnable
from magicapture.paperdoll import pairs
from magicapture.paperdoll.recipe import doll_recipe
from magicapture.paperdoll.weights import loss_embedder, model_folder
from magicapture.recipes import RECIPE_NAMES, recipe, with_steps
from magicapture.tokens import Concept
from magicapture.training import Stepped, Trainer, TrainingJob

RECORDS = Path(__file__).with_name("golden")
STEPS = 6


def short(full: Recipe, **changes: Any) -> Recipe:
    """Six steps of a recipe, with few variants and class images."""
    prior = PriorSettings(images=min(2, full.prior.images), steps=2)
    few = replace(with_steps(full, STEPS), variants=2, prior=prior, precision="model")
    return replace(few, **changes)


def environment() -> dict[str, str]:
    """What rounding depends on."""
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {maker()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def maker() -> str:
    """Who made the processor: matrix products of the same instructions differ by it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return platform.processor()


def outcome(job: TrainingJob, backbone: Any, embedder: Any, dino: Any) -> dict[str, Any]:
    """Losses and gradient norms of each step; a norm and a digest of every tensor learned."""
    steps: list[dict[str, float]] = []

    def listen(event: object) -> None:
        if isinstance(event, Stepped):
            steps.append({**event.losses, "total": event.total, "norm": event.grad_norm})

    with Trainer.open(job, backbone, embedder=embedder, dino=dino, listener=listen) as trainer:
        adapter = trainer.run()
    tensors = dict(named(adapter))
    return {
        "steps": steps,
        "norms": {name: float(t.norm()) for name, t in tensors.items()},
        "digests": {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in tensors.items()},
    }


def named(adapter: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weights in sorted(adapter.lora.items()):
        yield f"{name}.down", weights.down.contiguous()
        yield f"{name}.up", weights.up.contiguous()
    for token, vectors in sorted(adapter.tokens.items()):
        for encoder, values in vectors.items():
            yield f"{token}.{encoder}", values.contiguous()


def compare(name: str, got: dict[str, Any]) -> None:
    file = RECORDS / f"{name}.json"
    if os.environ.get("MAGICAPTURE_RECORD"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"environment": environment(), **got}, indent=1) + "\n")
        return
    record = json.loads(file.read_text())
    assert len(got["steps"]) == len(record["steps"]) == STEPS
    assert got["norms"].keys() == record["norms"].keys()
    if record["environment"] == environment():
        assert got["steps"] == record["steps"]
        assert got["digests"] == record["digests"]
        return
    for mine, theirs in zip(got["steps"], record["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-4)
    assert got["norms"] == pytest.approx(record["norms"], rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_recipe_on_a_tiny_stable_diffusion(name, make_job, make_backbone, embedder, dino):
    full = recipe(name)
    # T' of 512 px, which is an SNR of a sixteenth where it is stated for a picture of 128 px.
    same = replace(full.identity, min_snr=full.identity.min_snr / 16)
    clear = replace(full.dino, min_snr=full.dino.min_snr / 16)
    few = short(full, resolution=128, identity=same, dino=clear)
    factors = replace(few.refocus, factors=(1, 2))
    job = replace(make_job(seed=3), recipe=replace(few, refocus=factors))
    compare(f"tiny-{name}", outcome(job, make_backbone(), embedder, dino))


@pytest.mark.parametrize("name", [name for name in RECIPE_NAMES if name != "things"])
def test_every_recipe_on_dolls(name):
    pair = pairs.make_pair(1_000_004, 1_000_054, poses=1)
    job = TrainingJob(
        Learnable(Concept("ada", "subject"), pairs.references(pair.source)),
        Learnable(Concept("fable", "style"), pairs.references(pair.reference)),
        short(doll_recipe(name, rate=1)),
        seed=3,
    )
    models = load_backbone(model_folder()), loss_embedder(), None
    compare(f"doll-{name}", outcome(job, *models))
