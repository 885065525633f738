"""The most memory that was in use: the GPU's, or of this process."""

from __future__ import annotations

from pathlib import Path

import torch


def peak(device: torch.device) -> float:
    """MiB at the most since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def forget_peak(device: torch.device) -> None:
    """Count anew from here; without a GPU on Linux alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
