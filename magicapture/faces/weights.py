"""State dicts from files, into networks that are only run, never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, StorageError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, without the "module." of parallel training.

    Read with weights_only, so that a file cannot run code. Raises StorageError for one that is
    missing or damaged, InputError for one that holds something else.
    """
    if not path.is_file():
        raise StorageError(f"There is no file {path}; check its name and folder.")
    state: Any
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and torch each have errors of their own
        raise StorageError(
            f"{path} is damaged or not a file of weights ({_first_line(error)}); download it again."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not (isinstance(state, dict) and state and all(map(torch.is_tensor, state.values()))):
        raise InputError(f"{path.name} holds no weights of a network; expected a state dict.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def filled(network: nn.Module, weights: dict[str, Tensor], name: str) -> nn.Module:
    """The network with these weights, frozen, in float32, in eval mode.

    Raises InputError that names what does not fit; nothing is left at random.
    """
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{name} does not fit {type(network).__name__} ({_first_line(error)}); it is another "
            "version of it, or only a part."
        ) from error
    return network.float().eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
