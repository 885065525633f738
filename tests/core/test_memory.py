"""Memory that runs out: whose it is, what is said, and who else recognises it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from magicapture.errors import GpuOutOfMemoryError, MagiCaptureError, OutOfMemoryError
from magicapture.memory import memory_explained, ran_out

TOO_MUCH = 10**15


def fail(error: Exception):
    raise error


FAILURES = {
    "torch": (lambda: torch.empty(TOO_MUCH), "CPU"),
    "numpy": (lambda: np.empty(TOO_MUCH), "CPU"),
    "Python": (lambda: bytearray(10**18), "CPU"),
    "the system": (lambda: fail(OSError(errno.ENOMEM, "Cannot allocate memory")), "CPU"),
    "CUDA": (lambda: fail(torch.cuda.OutOfMemoryError("Tried to allocate 20 GiB.")), "GPU"),
    "CUDA, later": (lambda: fail(RuntimeError("CUDA error: out of memory\nadvice")), "GPU"),
    "cuBLAS": (lambda: fail(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")), "GPU"),
}


@pytest.mark.parametrize(("use", "whose"), FAILURES.values(), ids=FAILURES.keys())
def test_memory_that_runs_out_is_explained(use, whose):
    kind = GpuOutOfMemoryError if whose == "GPU" else OutOfMemoryError
    explained = memory_explained("Take less gpu.", "Take less cpu.")
    with pytest.raises(OutOfMemoryError, match=whose.lower()) as raised, explained:
        use()
    assert type(raised.value) is kind
    assert ran_out(raised.value) == whose
    assert "\n" not in str(raised.value)


def test_torchs_own_kind_is_kept_for_the_gpu():
    """ComfyUI unloads its models at `torch.cuda.OutOfMemoryError`, and at no other."""
    with pytest.raises(torch.cuda.OutOfMemoryError) as raised, memory_explained("", ""):
        raise torch.cuda.OutOfMemoryError("Tried to allocate 20 GiB.")
    assert isinstance(raised.value, MagiCaptureError)
    assert not issubclass(OutOfMemoryError, torch.cuda.OutOfMemoryError)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), memory_explained("", ""):
        raise ZeroDivisionError
    assert ran_out(RuntimeError("a shape is wrong")) is None


_LIMITED = """
import resource, sys, torch
from pathlib import Path
from magicapture.errors import MagiCaptureError
from magicapture.weight_files import read_tensors

pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 48 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    read_tensors(sys.argv[1])
except MagiCaptureError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of Linux")
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_file_that_memory_does_not_hold_is_not_called_damaged(tmp_path, ending):
    file = tmp_path / f"large.{ending}"
    tensors = {"weight": torch.zeros(64, 2**20)}  # 256 MB
    save_file(tensors, file) if ending == "safetensors" else torch.save(tensors, file)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(file)], capture_output=True, text=True
    )
    assert done.stdout.startswith("OutOfMemoryError"), done.stdout + done.stderr
    assert str(file) in done.stdout and "memory is not enough" in done.stdout
