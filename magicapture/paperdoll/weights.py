"""The shipped weights: a Stable Diffusion folder, and a file for each network that reads dolls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from ..errors import InputError, StorageError
from ..weight_files import difference, read_tensors
from .readers import ConvEmbedder, FaceFinder, Parser, PatchEmbedder, Probe, StyleEmbedder

WEIGHTS = Path(__file__).parent / "weights"
"""The folder that comes with the package; `magicapture.backbones.load_backbone` takes it."""

READERS: dict[str, Callable[[], nn.Module]] = {
    "identity_loss": ConvEmbedder,
    "identity_score": PatchEmbedder,
    "finder": FaceFinder,
    "parser": Parser,
    "style": StyleEmbedder,
    "probe": Probe,
}

_REBUILD = (
    "Install MagiCapture again, or build the weights from a clone of the repository: "
    "python -m pretrain --out build/paperdoll --export FOLDER"
)
_Network = TypeVar("_Network", bound=nn.Module)


def load_reader(name: str, folder: Path = WEIGHTS) -> nn.Module:
    """One of READERS with its trained weights: float32 on the CPU, frozen, ready to read.

    Raises StorageError for a file that is missing, damaged or of another network.
    """
    return _filled(READERS[name](), folder / f"{name}.safetensors")


def loss_embedder(folder: Path = WEIGHTS) -> ConvEmbedder:
    """The face embedder for the identity loss; scores come from the other one, "identity_score".

    It fits `magicapture.faces.embed.FaceEmbedder`: faces (B,3,112,112) in 0..1 to (B,128).
    Raises StorageError as `load_reader`.
    """
    return _filled(ConvEmbedder(), folder / "identity_loss.safetensors")


def model_folder(folder: Path = WEIGHTS) -> Path:
    """The folder of the diffusion model; raises StorageError where there is none."""
    if not (folder / "model_index.json").is_file():
        raise StorageError(f"The paperdoll model is missing: {folder} holds none. {_REBUILD}.")
    return folder


def transformer_folder(folder: Path = WEIGHTS) -> Path:
    """The folder of the transformer; raises StorageError where there is none."""
    if not (folder / "transformer" / "config.json").is_file():
        raise StorageError(
            f"The paperdoll transformer is missing: {folder} holds none. Build it from a clone of "
            "the repository: python -m pretrain --stage transformer --out build/paperdoll --export "
            "FOLDER."
        )
    return folder / "transformer"


def _filled(network: _Network, file: Path) -> _Network:
    if not file.is_file():
        raise StorageError(f"The paperdoll weights are missing: there is no {file}. {_REBUILD}.")
    try:
        weights = read_tensors(file)
    except (InputError, StorageError) as error:
        raise StorageError(f"{error} {_REBUILD}.") from error
    if wrong := difference(network, weights):
        raise StorageError(f"{file} holds another network's weights: it {wrong}. {_REBUILD}.")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
