"""What a bench runs on, and what it takes: names that say nothing of the user, and peak memory."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ..environment import version_of
from ..version import __version__

_PACKAGES = ("torch", "diffusers", "transformers", "peft")
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def machine(device: torch.device) -> dict[str, object]:
    """The device's name and memory and the programs' versions, as JSON-ready data."""
    return {
        "magicapture": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _name(device),
        "device_gib": _gib(device),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "cuda": torch.version.hip or torch.version.cuda if device.type == "cuda" else None,
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if device.type == "cpu" and line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{device.type} {platform.processor()}".strip()


def _gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)


class PeakMemory:
    """The most memory in use since it was made: of the GPU and of this process, in MiB.

    gpu: None without one. Apple's tells only what is in use, so that `sample` is to be called now
    and then. process: None on Windows; elsewhere but on Linux it counts from the program's start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._sampled = device, 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):
            _FORGET.write_text("5", "ascii")

    def sample(self) -> None:
        """Take note of what is in use, where no peak is kept."""
        if self.device.type == "mps":
            self._sampled = max(self._sampled, torch.mps.driver_allocated_memory() / 2**20)

    @property
    def gpu(self) -> float | None:
        """MiB of the GPU, as PyTorch allocated them."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return round(self._sampled) if self.device.type == "mps" else None

    @property
    def process(self) -> float | None:
        """MiB of this process."""
        with suppress(OSError, IndexError):
            return round(int(_STATUS.read_text("ascii").partition("VmHWM:")[2].split()[0]) / 2**10)
        if sys.platform == "win32":
            return None
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
