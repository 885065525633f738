"""State dicts from files, into networks that are only run, never trained."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError
from ..weight_files import difference, read_tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, without the "module." of parallel training.

    Raises StorageError for one that is missing or damaged, InputError for one that holds something
    else or could run code.
    """
    return {key.removeprefix("module."): value for key, value in read_tensors(path).items()}


def filled(network: nn.Module, weights: dict[str, Tensor], name: str) -> nn.Module:
    """The network with these weights, frozen, in float32, in eval mode.

    Raises InputError that names what does not fit; nothing is left at random.
    """
    if wrong := difference(network, weights):
        raise InputError(
            f"{name} does not fit {type(network).__name__}: it {wrong}. It is another version of "
            "it, or only a part."
        )
    network.load_state_dict(weights)
    return network.float().eval().requires_grad_(False)
