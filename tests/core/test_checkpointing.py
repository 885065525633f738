"""Gradient checkpointing: equal numbers, one more forward pass, nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from magicapture.checkpointing import checkpointed
from magicapture.lora import injected, target_names


class Counting(nn.Module):
    """A linear layer that counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.runs = nn.Linear(3, 3), 0

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        self.runs += 1
        return torch.tanh(self.linear(x) + shift)


def test_activations_are_computed_anew_once() -> None:
    block = Counting()
    with checkpointed([block]):
        block(torch.ones(1, 3), shift=1.0).sum().backward()
    assert block.runs == 2


def test_nothing_is_computed_twice_without_gradients() -> None:
    block = Counting()
    with checkpointed([block]), torch.no_grad():
        block(torch.ones(1, 3))
    with checkpointed([block]), torch.inference_mode():
        block(torch.ones(1, 3))
    assert block.runs == 2


def test_fewer_activations_are_kept() -> None:
    block = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))

    def saved_bytes() -> int:
        sizes: list[int] = []
        pack = lambda tensor: sizes.append(tensor.nbytes) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(torch.randn(64, 8))
        return sum(sizes)

    plain = saved_bytes()
    with checkpointed([block]):
        assert saved_bytes() < plain / 3


def test_the_gradients_of_a_lora_are_equal(tiny: SimpleNamespace) -> None:
    unet = tiny.unet().requires_grad_(False)
    latent, context = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 32)
    blocks = [m for n, m in unet.named_modules() if n.endswith("transformer_blocks.0")]
    gradients, outputs = [], []
    with injected(unet, target_names(unet, "cross"), rank=2) as lora:
        for parameter in lora.parameters():
            parameter.data.normal_(std=0.1)
        for scope in ([], blocks):
            with checkpointed(scope):
                output = unet(latent, torch.tensor([9]), context).sample
                gradients.append(torch.autograd.grad(output.square().sum(), lora.parameters()))
                outputs.append(output)
    assert torch.equal(*outputs)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def test_forward_is_put_back_also_after_an_exception() -> None:
    plain, patched = Counting(), Counting()
    own = patched.forward = lambda x: x
    with pytest.raises(RuntimeError), checkpointed([plain, patched]):
        assert "forward" in vars(plain)
        raise RuntimeError
    assert "forward" not in vars(plain)
    assert patched.forward is own


def test_a_block_computed_anew_gets_options_as_they_were() -> None:
    """A host counts in them from block to block."""

    class Weighed(nn.Module):
        def forward(self, x: Tensor, options: dict[str, int]) -> Tensor:
            return torch.tanh(x * options["index"])

    def slope(*scope: nn.Module) -> Tensor:
        x, options = torch.ones(1, requires_grad=True), {"index": 2}
        with checkpointed(scope):
            out = block(x, options=options) + block(x, options)
            options["index"] = 5
            return torch.autograd.grad(out, x)[0]

    block = Weighed()
    assert torch.equal(slope(block), slope())
