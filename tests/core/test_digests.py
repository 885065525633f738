"""What a hash of a model sees, and what it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from magicapture.digests import digest, tokenizer_digest


class Scaled(nn.Module):
    """A network with a parameter, buffers, a plain setting and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(300, 70)
        self.norm = nn.BatchNorm1d(70)
        self.register_buffer("mean", torch.tensor(0.5), persistent=False)
        self.scale, self.shift = 2.0, torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x - self.mean)) * self.scale


def last_weight(network: Scaled) -> None:
    """One bit of one weight."""
    network.layer.weight.data.view(torch.int32)[-1, -1] ^= 1


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "a bit of the last weight": last_weight,
    "two weights swapped": lambda n: n.layer.weight.data.copy_(n.layer.weight.data.flip(0)),
    "a buffer": lambda n: n.norm.running_var.mul_(2),
    "a buffer that is not saved": lambda n: n.mean.fill_(0.485),
    "a setting": lambda n: setattr(n, "scale", 3.0),
    "a setting of a layer": lambda n: setattr(n.norm, "eps", 1e-3),
    "a tensor that is no buffer": lambda n: n.shift.fill_(1),
    "the class of a layer": lambda n: setattr(n, "norm", nn.Identity()),
    "the dtype": lambda n: n.double(),
    "the shape": lambda n: setattr(n, "shift", n.shift[None]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_of_a_network_gives_another_hash(change):
    network = Scaled()
    before = digest(network)
    with torch.no_grad():
        change(network)
    assert digest(network) != before


def test_what_does_not_change_the_result_gives_the_same_hash():
    network = Scaled().eval()
    before = digest(network)
    network(torch.rand(2, 300))
    assert digest(network) == digest(copy.deepcopy(network)) == before
    network.train().requires_grad_(False)
    network.layer.weight.data = network.layer.weight.data.t().contiguous().t()  # another layout
    with torch.inference_mode():
        network.layer.bias.data = network.layer.bias.data.clone()
        assert digest(network) == before


def test_code_that_a_file_brings_counts():
    """A trace keeps what a network was normalised by among its code's constants."""

    class Minus(nn.Module):
        def __init__(self, mean: float) -> None:
            super().__init__()
            self.mean = mean

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - torch.tensor([self.mean])

    def traced(mean: float) -> nn.Module:
        return torch.jit.trace(Minus(mean), torch.rand(2))

    assert digest(traced(0.5)) == digest(traced(0.5)) != digest(traced(0.485))
    layers = (torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())) for _ in range(2))
    relu, same = (digest(layer) for layer in layers)
    assert relu == same != digest(torch.fx.symbolic_trace(nn.Sequential(nn.Tanh())))


def test_a_function_counts_with_what_it_holds():
    def embedder(scale: float, network: nn.Module):
        return lambda faces: network(faces) * scale

    network = nn.Linear(2, 2)
    one = digest(embedder(1.0, network))
    assert digest(embedder(1.0, network)) == one != digest(embedder(2.0, network))
    other = copy.deepcopy(network)
    other.bias.data += 1
    assert digest(embedder(1.0, other)) != one
    assert digest(partial(torch.add, 1)) != digest(partial(torch.add, 2))
    assert digest(network.forward) != digest(other.forward)


def test_order_counts_in_a_list_and_not_in_a_dict_or_set():
    assert digest([1, 2]) != digest([2, 1])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert digest({"x", "y"}) == digest({"y", "x"})
    assert digest([1], 2) != digest([1, 2])


@pytest.mark.gpu
def test_the_device_does_not_count():
    network = Scaled()
    assert digest(network) == digest(copy.deepcopy(network).cuda())


def test_the_words_of_a_tokenizer_count_and_how_it_was_used_does_not(tokenizer):
    before = tokenizer_digest(tokenizer)
    other = copy.deepcopy(tokenizer)
    other(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(other) == before
    other.add_tokens(["<ada>"])
    assert tokenizer_digest(other) != before
