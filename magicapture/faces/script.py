"""TorchScript, the one kind of model file that runs code of its own when it is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from torch import nn

from ..errors import StorageError
from ..memory import refuse_large
from .align import FACE_SIZE

SCRIPTS = (".pt", ".pts", ".torchscript")
"""Endings under which TorchScript is loaded; under any other it is refused."""

SECONDS = 60.0
"""How long such a file may take to load and to embed one face."""

# What a traced network has none of: code that runs as it is loaded, and loops.
_MAY_HANG = re.compile(rb"__setstate__|\bwhile\b|\bfor\b")

_TRIAL = f"""
import sys, torch
network = torch.jit.load(sys.argv[1], map_location="cpu")
try:
    network(torch.rand(1, 3, {FACE_SIZE}, {FACE_SIZE}))
except Exception:
    pass  # said with reasons by the one who asked
"""


def load_script(path: Path) -> nn.Module:
    """The network of a TorchScript file, which runs the code in it.

    Only for a file that the user named. Raises StorageError for one that is damaged, crashes, or
    takes longer than SECONDS.
    """
    if _may_hang(path):
        _try_elsewhere(path)
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # RuntimeError or an unpickling error, by kind of damage
        refuse_large(path.name, error)
        raise StorageError(
            f"{path.name} is damaged or not TorchScript; save the network with torch.jit.trace or "
            "torch.jit.script, or give an ONNX file."
        ) from error


def _may_hang(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            code = (entry for entry in archive.infolist() if entry.filename.endswith(".py"))
            return any(_MAY_HANG.search(archive.read(entry)) for entry in code)
    except Exception:  # zipfile raises almost anything on damaged bytes
        return False  # and so will torch


def _try_elsewhere(path: Path) -> None:
    """Load the file and run it once in a process that can be stopped; a thread cannot."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _TRIAL, str(path.resolve())]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise StorageError(
            f"{path.name} holds code that did not come to an end in {SECONDS:g} seconds; it was "
            "stopped. Do not use this file; give an ONNX one."
        ) from None
    if done.returncode not in (0, 1):  # 1: an ordinary error, which loading it here will raise
        raise StorageError(
            f"{path.name} holds code that crashes when it is loaded (exit status "
            f"{done.returncode}). Do not use this file; give an ONNX one."
        )
