"""The memory of a device: how much there is, and how much of it a training can have."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..environment import device_name

COMPUTER, GPU = "this computer", "this GPU"

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Room:
    """Bytes of a device's memory.

    what: GPU or COMPUTER; name: what it is sold as. total: all there are. held: those
    that this process has. reach: those that it has or can have, beside other programs.
    """

    what: str
    name: str
    total: int
    held: int
    reach: int


def room(device: torch.device) -> Room | None:
    """The room on a device; None where it is not told."""
    name = device_name(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        held = torch.cuda.memory_allocated(device)
        return Room(GPU, name, total, held, free + reserved)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        held = torch.mps.driver_allocated_memory()
        return Room(GPU, name, total, held, total)
    if device.type != "cpu":
        return None
    try:
        import psutil  # which peft brings
    except ImportError:
        return None
    memory, own = psutil.virtual_memory(), psutil.Process().memory_info()
    held = own.rss
    total = min(memory.total, _container(), held + _unasked(own.vms))
    return Room(COMPUTER, name, total, held, min(total, memory.available + held))


def _unasked(asked: int) -> int:
    """Bytes that this process may ask for beside those it has, by ulimit -v; else a great many."""
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return 2**63
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 2**63 if most == resource.RLIM_INFINITY else max(0, most - asked)


def _container() -> int:
    """The limit of a container on Linux, where there is one."""
    with suppress(OSError, ValueError):  # "max" is no number
        return int(_CONTAINER.read_text("ascii"))
    return 2**63
