"""Memory that ran out, in words that say what to do, and the most that was in use."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
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
    def most(self) -> float | None:
        """MiB of the GPU where there is one, else of this process."""
        return self.process if self.gpu is None else self.gpu

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
