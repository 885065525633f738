"""Reading weights: files with nothing else in them, and the libraries kept quiet."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ..errors import StorageError


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .ckpt, .pt, .pth or .bin file, on the CPU.

    Large files are mapped, so that a tensor is read when it is used. Raises StorageError for a
    file that is missing, damaged, or holds more than weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read as a file of weights (damaged, cut short, or with code in "
            f"it): {error}. Convert a .ckpt to .safetensors, or fetch the file again."
        ) from error
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise StorageError(f"{path} holds a {type(state).__name__}; expected named tensors.")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep diffusers and transformers from drawing their own bars while they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as restore:
        for logging in (diffusers_logging, transformers_logging):
            if logging.is_progress_bar_enabled():
                logging.disable_progress_bar()
                restore.callback(logging.enable_progress_bar)
        yield


@contextmanager
def errors_only() -> Iterator[None]:
    """Keep diffusers from warning about what it does itself, as casts in a single-file load."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
