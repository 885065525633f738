"""A rehearsed step against a real one, of every family; and models that come out as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from magicapture.config import RefocusSettings
from magicapture.losses import Row
from magicapture.planning import noise_job
from magicapture.planning.footprint import Footprint, StepCost, mean_flops, tensor_bytes
from magicapture.planning.ledger import Ledger, fake_mode, faked
from magicapture.planning.rehearsal import rehearse
from magicapture.recipes import recipe as named
from magicapture.recipes import with_steps
from magicapture.training import Trainer, TrainingJob
from tests.core._families import KINDS

SIDE = 128
PLAIN = SDPBackend.MATH
"""Attention by matrix products, which PyTorch's counter knows on a CPU as well."""


class Embedder(nn.Module):
    """A small convolutional face embedder, frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, 4), nn.Tanh(), nn.Conv2d(8, 8, 5, 4), nn.Flatten(), nn.Linear(288, 8)
        )
        self.requires_grad_(False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.layers(faces)


def job(
    backbone: Any, name: str = "magicapture", *, phases: slice = slice(None), **changes: Any
) -> TrainingJob:
    short, refocus = with_steps(named(name), 10), RefocusSettings(factors=(1, 2))
    settings = {"resolution": SIDE, "refocus": refocus, "phases": short.phases[phases], **changes}
    return noise_job(replace(short, **settings), SIDE).fitted(backbone.family)


def last(backbone: Any, **changes: Any) -> StepCost:
    """A step of the last phase, rehearsed alone."""
    with backbone.training(None):
        of = job(backbone, phases=slice(1, None), **changes)
        return rehearse(of, backbone).phases[0]


NAMES = ["backbone", "flux_backbone", "zimage_backbone", "qwen_image_backbone", "chroma"]


@pytest.fixture(params=NAMES)
def any_backbone(request: pytest.FixtureRequest, tiny: Any, tmp_path: Path) -> Any:
    if request.param in KINDS:
        return KINDS[request.param].make(tiny, tmp_path)
    return request.getfixturevalue(request.param)


def test_every_family_is_rehearsed_and_left_as_it_was(any_backbone: Any) -> None:
    parts = any_backbone.modules
    before = {(p, n): t for p, m in parts.items() for n, t in m.named_parameters()}
    with any_backbone.training(None):
        found = rehearse(job(any_backbone), any_backbone, Embedder())
    after = {(p, n): t for p, m in parts.items() for n, t in m.named_parameters()}
    assert before.keys() == after.keys()
    assert all(after[key] is tensor for key, tensor in before.items())
    assert [phase.steps for phase in found.phases] == [2, 8]
    assert all(phase.activations and phase.flops for phase in found.phases)
    assert found.weights >= tensor_bytes(before.values())
    assert found == Footprint.read(found.to_dict())


def clean(rows: list[Row]) -> list[Row]:
    """The rows at so little noise that all losses act."""
    return [replace(row, timestep=10) for row in rows]


def seen_with(objective: Any) -> list[torch.Tensor]:
    """What DINO knows of the style and holds beside its weights."""
    look = objective.dino
    return [] if look is None else [look.references, *look.dino.parameters(), *look.dino.buffers()]


def kept_for_backward(objective: Any, rows: Any) -> int:
    """Bytes that autograd saves in one real forward pass, weights left out."""
    weights = {
        t.untyped_storage().data_ptr()
        for module in (*objective.backbone.modules.values(), objective.vectors)
        for t in (*module.parameters(), *module.buffers())
    }
    weights |= {t.untyped_storage().data_ptr() for t in seen_with(objective)}
    sizes: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # whose place is then not taken by another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(rows)
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["magicapture", "things"])
def test_as_much_is_alive_as_autograd_saves_in_a_real_pass(
    name: str, backbone: Any, dino: Any
) -> None:
    """Counted by hooks of PyTorch on the real weights, apart from the ledger."""
    of = job(backbone, name)
    phase = of.recipe.phases[1]
    with Trainer.open(of, backbone, dino=dino) as trainer, trainer.opened(phase) as objective:
        rows = clean(trainer.materials.batches.rows(phase, torch.Generator().manual_seed(0)))
        real = kept_for_backward(objective, rows)
        modules = [*backbone.modules.values(), trainer.vectors, dino]
        with faked(modules, fake_mode()) as fakes, Ledger(fakes) as ledger:
            losses = objective(rows)
            assert losses.total.requires_grad
            assert ledger.live == pytest.approx(real, rel=0.1)


def test_dino_is_counted_where_a_thing_is_learned(backbone: Any, dino: Any) -> None:
    """Its weights, and its part of a step by PyTorch's own count of real ones."""
    of = job(backbone, "things", phases=slice(1, None))
    (phase,) = of.recipe.phases
    real = []
    with Trainer.open(of, backbone, dino=dino) as trainer, trainer.opened(phase) as objective:
        rows = clean(trainer.materials.batches.rows(phase, torch.Generator().manual_seed(0)))
        for timestep in (10, 990):  # DINO is shown the first alone
            with sdpa_kernel(PLAIN), FlopCounterMode(display=False) as counter:
                objective([replace(row, timestep=timestep) for row in rows]).total.backward()
            real.append(counter.get_total_flops())
        held = [*backbone.modules.values(), trainer.vectors, dino]
    with backbone.training(None), sdpa_kernel(PLAIN):
        found = rehearse(of, backbone, dino=dino)
    assert found.weights == tensor_bytes(t for m in held for t in (*m.parameters(), *m.buffers()))
    abar = backbone.schedule.levels.alphas_cumprod
    acts = float((abar / (1 - abar) > of.recipe.snr(of.recipe.dino.min_snr)).float().mean())
    assert 0.1 < acts < 0.9 and real[1] < 0.9 * real[0]
    expected = acts * real[0] + (1 - acts) * real[1]
    assert found.phases[0].flops == pytest.approx(expected, rel=0.005)


@pytest.mark.slow
def test_settings_that_save_memory_do(backbone: Any) -> None:
    plain, less = last(backbone), last(backbone, batching="in_turn", checkpointing=True)
    assert less.activations < 0.6 * plain.activations
    assert 1.1 * plain.flops < less.flops < 1.5 * plain.flops


def test_half_the_bytes_in_half_the_precision(backbone: Any) -> None:
    of = job(backbone, phases=slice(0, 1))
    with backbone.training(None):
        whole = rehearse(of, backbone)
        half = rehearse(of, backbone, dtype=torch.bfloat16)
    vectors = 2 * 32 * 4
    assert half.weights - vectors == pytest.approx((whole.weights - vectors) / 2, rel=0.01)
    assert half.phases[0].activations < 0.8 * whole.phases[0].activations


def test_accumulation_doubles_the_work_and_not_the_memory(backbone: Any) -> None:
    of = job(backbone, phases=slice(0, 1))
    twice = replace(of, recipe=replace(of.recipe, accumulation=2))
    with backbone.training(None):
        one, two = (rehearse(each, backbone).phases[0] for each in (of, twice))
    assert two.flops == 2 * one.flops
    assert two.activations == pytest.approx(one.activations, rel=0.05)


def test_identity_counts_in_the_share_of_steps_that_have_it() -> None:
    assert mean_flops(1000) == mean_flops(1000, (200, 1.0)) == 1000
    assert mean_flops(1000, (200, 0.5)) == 900
    assert mean_flops(1000, (200, 0.0), (150, 0.5)) == 725
