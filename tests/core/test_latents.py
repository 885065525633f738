"""Latents that are kept: whose they are, how many, and which go first."""

from __future__ import annotations

import torch
from torch import Tensor

from magicapture.latents import LatentMemory


def pictures(seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def encode(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 8)


def test_the_same_pictures_are_encoded_once() -> None:
    memory = LatentMemory()
    first = memory(encode, pictures(0), torch.float32)
    assert memory(encode, pictures(0), torch.float32).equal(first) and memory.encoded == 1
    assert first.equal(encode(pictures(0)))
    changed = pictures(0)
    changed[1, 2, 15, 15] += 1e-6
    memory(encode, changed, torch.float32)
    memory(encode, pictures(0)[:1], torch.float32)
    memory(encode, pictures(0), torch.bfloat16)
    assert memory.encoded == 4, "other bits, another batch, another VAE's dtype"


def test_what_was_not_used_for_longest_goes_first() -> None:
    size = encode(pictures(0)).nbytes
    memory = LatentMemory(most=2 * size)
    for seed in (0, 1, 0, 2, 0):
        memory(encode, pictures(seed))
    assert memory.encoded == 3, "0 was used again and stayed"
    memory(encode, pictures(1))
    assert memory.encoded == 4
    assert memory(encode, pictures(3, count=9)).equal(encode(pictures(3, count=9)))
    memory(encode, pictures(3, count=9))
    assert memory.encoded == 6, "what is larger than all is not kept"
