"""What a bench runs on, in names that say nothing of the user."""

from __future__ import annotations

import platform

import torch

from ..environment import device_name, version_of
from ..version import __version__

_PACKAGES = ("torch", "diffusers", "transformers", "peft")


def machine(device: torch.device) -> dict[str, object]:
    """The device's name and memory and the programs' versions, as JSON-ready data."""
    return {
        "magicapture": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "device_gib": _gib(device),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "cuda": torch.version.hip or torch.version.cuda if device.type == "cuda" else None,
    }


def _gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
