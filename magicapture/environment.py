"""What the pack runs on here, for reports of bugs."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from .version import __version__

_PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "safetensors", "peft", "diffusers"),
    *("transformers", "accelerate", "torchao", "xformers", "bitsandbytes", "spandrel"),
    *("insightface", "facexlib", "onnx", "onnx2torch", "onnxruntime", "onnxruntime-gpu"),
    *("opencv-python", "opencv-python-headless", "opencv-contrib-python", "protobuf"),
)


def versions(**hosts: str) -> str:
    """The versions of the pack, of its hosts, of Python and of the packages, and the device.

    One line each for the program, the packages that are there, those that are not, the device.
    """
    found = {name: version_of(name) for name in _PACKAGES}
    there = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    absent = ", ".join(name for name, version in found.items() if not version)
    programs = {"MagiCapture": __version__, **hosts, "Python": platform.python_version()}
    told = ", ".join(f"{name} {version}" for name, version in programs.items())
    return (
        f"{told} on {platform.system()} {platform.machine()} ({sys.executable})\n"
        f"With {there}\nWithout {absent}\nDevice: {_device()}"
    )


def version_of(package: str) -> str:
    """The version that is installed, read without importing it; empty where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def device_name(device: torch.device) -> str:
    """What a device is sold as, "NVIDIA H200"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if device.type == "cpu" and line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{device.type} {platform.processor()}".strip()


def _device() -> str:
    if not torch.cuda.is_available():
        return "mps" if torch.backends.mps.is_available() else "cpu"
    which = torch.cuda.get_device_properties(torch.cuda.current_device())
    build = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{which.name}, {which.total_memory / 2**30:.1f} GiB, {build}"
