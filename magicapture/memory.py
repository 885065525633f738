"""Memory that ran out, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from .errors import GpuOutOfMemoryError, MagiCaptureError, OutOfMemoryError

_GPU_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_CPU_WORDS = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "os error 12")


def ran_out(error: BaseException) -> Literal["GPU", "CPU"] | None:
    """Whose memory an error says is not enough, if it says so; each library has its own kind."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "GPU"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "CPU"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _GPU_WORDS):
        return "GPU"
    if any(words in str(error) for words in _CPU_WORDS):  # safetensors has a kind of its own
        return "CPU"
    return None


def refuse_large(source: object, error: BaseException) -> None:
    """Raise OutOfMemoryError where an error says that a file or folder does not fit in memory.

    For whoever takes any error while reading for a sign of damage.
    """
    if ran_out(error) is not None:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise OutOfMemoryError(
            f"{source} cannot be read: the computer's memory is not enough for it. Close other "
            "programs, or take a smaller model or one in half precision; if there is memory, it is "
            f"damaged. ({reason})"
        ) from error


@contextmanager
def memory_explained(gpu: str, cpu: str) -> Iterator[None]:
    """Raise our OutOfMemoryError where memory runs out; `gpu` and `cpu` say what to do then."""
    try:
        yield
    except MagiCaptureError:
        raise
    except Exception as error:
        whose = ran_out(error)
        if whose is None:
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        if whose == "GPU":
            text = f"The GPU's memory is not enough. {gpu} ({reason})"
            raise GpuOutOfMemoryError(text) from error
        raise OutOfMemoryError(f"The computer's memory is not enough. {cpu} ({reason})") from error
