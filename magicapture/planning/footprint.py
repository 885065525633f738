"""What a training takes on a device, by its parts, and the few formulas that add them up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimizerName
from .room import COMPUTER, Room

GB = 2**30
"""Bytes; as memory is sold."""

SLACK = 1.15
"""What memory allocators take for the tensors that are alive: their blocks are not always full."""

PROGRAM = GB // 2
"""Bytes that a program needs before it has a model: the GPU's context, or Python and PyTorch."""

_MOMENTS: Mapping[OptimizerName, float] = {"adamw": 8.0, "adamw_8bit": 2.0 + 8 / 256}
"""Bytes that the optimiser keeps for each number that it trains: two moments, in 8 bits with a
scale for each block of 256."""

DRAWING_STEPS = 20
"""Denoising steps of a preview."""


@dataclass(frozen=True)
class StepCost:
    """What an optimiser step of a phase takes.

    trained: how many numbers it trains. activations: bytes that are alive at the most in its
    forward and backward passes, gradients among them, weights not. flops: of a step, on average.
    """

    name: str
    steps: int
    trained: int
    activations: int
    flops: int


@dataclass(frozen=True)
class Footprint:
    """What a training takes: bytes of the weights as they are held, of encoding and drawing.

    drawn: FLOPs of a preview.
    """

    weights: int
    encoding: int
    drawing: int
    drawn: int
    phases: tuple[StepCost, ...]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Footprint:
        """What `to_dict` wrote; raises TypeError or KeyError for anything else."""
        phases = tuple(StepCost(**phase) for phase in data["phases"])
        return cls(**{**data, "phases": phases})

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)

    @property
    def flops(self) -> int:
        """Of all steps."""
        return sum(phase.steps * phase.flops for phase in self.phases)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors as they are held, each once, whatever shares it."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def followed(*networks: object) -> list[nn.Module]:
    """Of a face embedder and DINO, or None for them, those whose passes have shapes to follow."""
    return [
        network
        for network in networks
        if isinstance(network, nn.Module)
        and not any(isinstance(part, torch.jit.ScriptModule) for part in network.modules())
    ]


def trained_bytes(phase: StepCost, optimizer: OptimizerName) -> int:
    """The numbers trained in 32 bits, and the optimiser's moments of each."""
    return round(phase.trained * (4 + _MOMENTS[optimizer]))


def peak_bytes(
    footprint: Footprint,
    optimizer: OptimizerName,
    program: int = PROGRAM,
    slack: float = SLACK,
) -> int:
    """The most that a training takes: program + weights + the largest of what comes in turn.

    Photos are encoded before a step; a step holds what it trains, its moments and its activations;
    a preview is drawn beside what is trained.
    """
    in_turn = [slack * footprint.encoding]
    for phase in footprint.phases:
        most = max(phase.activations, footprint.drawing)
        in_turn.append(trained_bytes(phase, optimizer) + slack * most)
    return program + footprint.weights + round(max(in_turn))


def mean_flops(whole: int, *seldom: tuple[float, float]) -> int:
    """FLOPs of a step on average, from one in which everything acts.

    seldom: of what is not in every step, its FLOPs and the share of steps that have it.
    """
    return round(whole - sum(flops * (1 - acts) for flops, acts in seldom))


def previews(steps: int, every: int) -> int:
    """How many previews a run of so many steps draws, the one at the end among them."""
    return -(-steps // every) if every else 0


def program_bytes(here: Room | None, weights: int) -> int:
    """What is held beside weights: by this process in the computer's memory, by a GPU's context."""
    if here is None or here.what != COMPUTER:
        return PROGRAM
    return max(PROGRAM, here.held - weights)


def gigabytes(count: float) -> str:
    """Bytes as "7.6 GB", of 2^30."""
    return f"{count / GB:.1f} GB"


def duration(seconds: float) -> str:
    """A rough time in words: "40 seconds", "12 minutes", "2.5 hours"."""
    if seconds < 90:
        count = max(1, round(seconds))
        return f"{count} second{'s' * (count > 1)}"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
