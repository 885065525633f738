"""Counting without computing: against closed forms, and against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from magicapture.checkpointing import checkpointed
from magicapture.planning.ledger import Ledger, fake_mode, faked

ROWS, WIDTH, LAYERS = 64, 256, 4


class Layer(nn.Module):
    """A frozen linear layer and a square, which keeps its input for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square()


def network() -> nn.Sequential:
    return nn.Sequential(*(Layer() for _ in range(LAYERS)))


def run(of: nn.Module) -> Ledger:
    start = nn.Parameter(torch.zeros(ROWS, WIDTH))
    holder = nn.ParameterList([start])
    with faked([of, holder], fake_mode()) as fakes, Ledger(fakes) as ledger:
        of(holder[0]).mean().backward()
    return ledger


def test_flops_are_those_of_the_products() -> None:
    ledger = run(network())
    product = 2 * ROWS * WIDTH * WIDTH
    assert ledger.flops == LAYERS * product * 2  # forward, and the gradient of the input


def test_the_peak_is_what_autograd_keeps() -> None:
    """Each square keeps its input; beside them are the gradient and what its formula makes."""
    map_ = 4 * ROWS * WIDTH
    peak = run(network()).peak
    assert LAYERS * map_ <= peak <= (LAYERS + 4) * map_ + 64


def test_checkpoints_keep_inputs_alone_and_compute_twice() -> None:
    plain, of = run(network()), network()
    halves = nn.Sequential(of[:2], of[2:])
    with checkpointed(halves):
        saved = run(halves)
    assert saved.peak < plain.peak
    assert saved.flops == plain.flops + LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_what_is_dropped_is_not_alive() -> None:
    of = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    with faked([of], fake_mode()) as fakes, Ledger(fakes) as ledger, torch.no_grad():
        for _ in range(5):
            of(torch.zeros(ROWS, WIDTH))
    assert ledger.live == 0 and ledger.peak <= 2 * 4 * ROWS * WIDTH


def test_views_and_weights_take_nothing() -> None:
    of = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    with faked([of], fake_mode()) as fakes, Ledger(fakes) as ledger:
        kept = [of.weight.T, of.weight[:3], of.weight.view(-1)]
        assert ledger.peak == 0 and len(kept) == 3


def test_the_very_same_weights_are_back_also_after_an_exception() -> None:
    of = nn.BatchNorm1d(4)
    before = {**dict(of.named_parameters()), **dict(of.named_buffers())}
    with pytest.raises(RuntimeError), faked([of], fake_mode()):
        assert dict(of.named_parameters())["weight"] is not before["weight"]
        raise RuntimeError
    after = {**dict(of.named_parameters()), **dict(of.named_buffers())}
    assert all(after[name] is tensor for name, tensor in before.items())


def test_tied_weights_stay_tied_and_frozen_ones_alone_are_cast() -> None:
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    frozen = nn.Linear(4, 4).requires_grad_(False)
    both = nn.ModuleList([one, other, frozen])
    with faked([both], fake_mode(), torch.bfloat16) as fakes:
        assert one.weight is other.weight and len(fakes) == 3
        assert one.weight.dtype == torch.float32 and frozen.weight.dtype == torch.bfloat16
