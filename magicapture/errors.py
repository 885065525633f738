"""The errors MagiCapture raises, so that a caller can tell the user's mistakes from bugs."""

from __future__ import annotations

import torch


class MagiCaptureError(Exception):
    """Base of every error raised on purpose; says what was expected, what came, what to do."""


class InputError(MagiCaptureError, ValueError):
    """Something the user gave (photos, masks, names, settings) cannot be used as it is."""


class UnsupportedModelError(MagiCaptureError):
    """The base model, text encoder or VAE is of a kind the method does not run on."""


class NumericalError(MagiCaptureError, ArithmeticError):
    """A loss or gradient became NaN or infinite, so training was stopped before it spread."""


class StorageError(MagiCaptureError, OSError):
    """A file could not be read or written (missing, damaged, disk full, outside its folder)."""


class OutOfMemoryError(MagiCaptureError, MemoryError):
    """The computer's memory does not hold what the settings ask for."""


class GpuOutOfMemoryError(OutOfMemoryError, torch.cuda.OutOfMemoryError):
    """The GPU's memory does not; PyTorch's kind as well, at which ComfyUI unloads its models."""
