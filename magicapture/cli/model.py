"""The base model that a command line asks for, and where it runs."""

from __future__ import annotations

import argparse

import torch

from ..backbones import DiffusersBackbone, load_backbone
from ..config import Precision
from ..errors import InputError

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def backbone_from(arguments: argparse.Namespace, precision: Precision) -> DiffusersBackbone:
    """Load the base model onto its device; raises as `load_backbone` and `device_from`."""
    return load_backbone(
        arguments.base,
        device=device_from(arguments),
        dtype=DTYPES[precision],
        decoder=arguments.taesd,
    )


def device_from(arguments: argparse.Namespace) -> torch.device:
    """The device asked for, or the GPU where there is one; raises InputError if it is not there."""
    if arguments.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(arguments.device)
        torch.empty(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, NotImplementedError) or len(reason) > 200:  # lists of every backend
            reason = "this PyTorch has no such device"
        raise InputError(
            f"--device: {arguments.device[:40]!r} cannot be used here ({reason}); use cpu, or cuda "
            "on a machine with an NVIDIA GPU."
        ) from error
    return device


def precision_from(arguments: argparse.Namespace) -> Precision:
    """The precision asked for, or bf16 on a GPU and fp32 elsewhere."""
    if arguments.precision:
        return arguments.precision
    return "bf16" if device_from(arguments).type == "cuda" else "fp32"
