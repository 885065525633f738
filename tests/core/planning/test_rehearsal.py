"""A rehearsed step against a real one, of every family; and models that come out as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from magicapture.config import Recipe, RefocusSettings
from magicapture.planning import noise_job
from magicapture.planning.footprint import Footprint, mean_flops, tensor_bytes
from magicapture.planning.ledger import Ledger, fake_mode, faked
from magicapture.planning.rehearsal import rehearse
from magicapture.recipes import recipe as named
from magicapture.recipes import with_steps
from magicapture.training import Trainer, TrainingJob

SIDE = 128


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


def recipe(**changes: Any) -> Recipe:
    refocus = RefocusSettings(factors=(1, 2))
    return replace(with_steps(named(), 10), resolution=SIDE, refocus=refocus, **changes)


def job(backbone: Any, **changes: Any) -> TrainingJob:
    return noise_job(recipe(**changes), SIDE).fitted(backbone.family)


def rehearsed(backbone: Any, **changes: Any) -> Footprint:
    with backbone.training(None):
        return rehearse(job(backbone, **changes), backbone, Embedder())


@pytest.fixture(params=["backbone", "flux_backbone", "zimage_backbone"])
def any_backbone(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_every_family_is_rehearsed_and_left_as_it_was(any_backbone: Any) -> None:
    parts = any_backbone.modules
    before = {(p, n): t for p, m in parts.items() for n, t in m.named_parameters()}
    found = rehearsed(any_backbone)
    after = {(p, n): t for p, m in parts.items() for n, t in m.named_parameters()}
    assert before.keys() == after.keys()
    assert all(after[key] is tensor for key, tensor in before.items())
    assert [phase.steps for phase in found.phases] == [2, 8]
    assert all(phase.activations and phase.flops for phase in found.phases)
    assert found.weights >= tensor_bytes(before.values())
    assert found == Footprint.read(found.to_dict())


def kept_for_backward(objective: Any, rows: Any) -> int:
    """Bytes that autograd saves in one real forward pass, weights left out."""
    weights = {
        t.untyped_storage().data_ptr()
        for module in (*objective.backbone.modules.values(), objective.vectors)
        for t in (*module.parameters(), *module.buffers())
    }
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


def test_as_much_is_alive_as_autograd_saves_in_a_real_pass(backbone: Any) -> None:
    """Counted by hooks of PyTorch on the real weights, apart from the ledger."""
    of = job(backbone)
    phase = of.recipe.phases[1]
    with Trainer.open(of, backbone) as trainer, trainer.opened(phase) as objective:
        rows = trainer.materials.batches.rows(phase, torch.Generator().manual_seed(0))
        real = kept_for_backward(objective, rows)
        modules = [*backbone.modules.values(), trainer.vectors]
        with faked(modules, fake_mode()) as fakes, Ledger(fakes) as ledger:
            losses = objective(rows)
            assert losses.total.requires_grad
            assert ledger.live == pytest.approx(real, rel=0.1)


def test_settings_that_save_memory_do(backbone: Any) -> None:
    plain = rehearsed(backbone).phases[1]
    turns = rehearsed(backbone, batching="in_turn").phases[1]
    again = rehearsed(backbone, checkpointing=True).phases[1]
    small = rehearsed(backbone, precision="bf16").phases[1]
    assert turns.activations < 0.6 * plain.activations
    assert turns.flops == pytest.approx(plain.flops, rel=0.02)
    assert again.activations < plain.activations and again.flops > 1.1 * plain.flops
    assert small.activations == plain.activations  # opened in its own dtype, as `training` was told
    one = rehearsed(backbone, batching="one_task").phases[1]
    assert one.activations == turns.activations and one.flops == pytest.approx(plain.flops / 3, 0.1)


def test_half_the_bytes_in_half_the_precision(backbone: Any) -> None:
    of = job(backbone)
    with backbone.training(None):
        whole = rehearse(of, backbone)
        half = rehearse(of, backbone, dtype=torch.bfloat16)
    vectors = 2 * 32 * 4
    assert half.weights - vectors == pytest.approx((whole.weights - vectors) / 2, rel=0.01)
    assert half.phases[1].activations < 0.8 * whole.phases[1].activations


def test_a_step_of_a_few_rows_takes_the_flops_of_each(backbone: Any) -> None:
    """Two rows in phase 1; accumulation doubles the work and not the memory."""
    once = rehearsed(backbone).phases[0]
    twice = rehearsed(backbone, accumulation=2).phases[0]
    assert twice.flops == 2 * once.flops
    assert twice.activations == pytest.approx(once.activations, rel=0.05)


def test_identity_counts_in_the_share_of_steps_that_have_it() -> None:
    assert mean_flops(1000, 100, 1.0) == 1000
    assert mean_flops(1000, 100, 0.5) == 900
    assert mean_flops(1000, 100, 0.0) == 800
