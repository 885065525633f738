"""Image networks read by spandrel: super-resolution as it is, face restorers behind one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, MagiCaptureError, StorageError, UnsupportedModelError
from ..faces.align import HEAD_SIZE
from ..memory import refuse_large
from ..weight_files import read_entries

if TYPE_CHECKING:
    from spandrel import ArchRegistry, ImageModelDescriptor, ModelDescriptor

logger = logging.getLogger(__name__)


class Restorer(Protocol):
    """Anything that restores aligned faces."""

    def __call__(self, faces: Tensor, /) -> Tensor:
        """Faces (B,3,512,512) RGB in 0..1, aligned to FFHQ_TEMPLATE, to the same, restored."""


def load_image_model(path: str | Path) -> ImageModelDescriptor[nn.Module]:
    """A super-resolution or face-restoration network from a .safetensors, .pth, .pt or .ckpt file.

    The architecture is told from the weights by spandrel. CodeFormer, whose licence forbids
    commercial use, is known where the package spandrel_extra_arches is installed. Raises
    StorageError for a missing or damaged file, UnsupportedModelError for one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no model at {path}; give a .safetensors or .pth file.")
    try:
        from spandrel import ImageModelDescriptor, canonicalize_state_dict
    except ImportError as error:
        raise MagiCaptureError(
            "Super-resolution and face restoration need the package spandrel; install it with "
            "'pip install spandrel'."
        ) from error
    model = _built(canonicalize_state_dict(read_entries(path)), path)
    if not isinstance(model, ImageModelDescriptor):
        raise UnsupportedModelError(
            f"{path.name} holds {model.architecture.name}, which needs a mask; give a "
            "super-resolution or face-restoration model."
        )
    return model.eval()


def _built(weights: Mapping[str, Any], path: Path) -> ModelDescriptor[nn.Module]:
    """The network that spandrel takes the weights for."""
    _require_plain_numbers(weights, path)
    registry, extra = _registry()
    name = "a network that spandrel knows"
    try:
        known = registry.architectures("detection")
        found = next((support for support in known if support.detect(weights)), None)
        if found is not None:
            name = found.architecture.id
            return found.architecture.load(weights)
    except Exception as error:  # sizes are read off the weights; where those are wrong, anything
        refuse_large(path.name, error)
        raise UnsupportedModelError(
            f"{path.name} looks like {name}, but its weights do not fit: it is damaged, or a "
            "variant that spandrel does not know. Download it again, or give another model."
        ) from error
    hint = "" if extra else " CodeFormer needs 'pip install spandrel_extra_arches'."
    raise UnsupportedModelError(
        f"{path.name} is no network that spandrel knows; give a super-resolution or "
        f"face-restoration model.{hint}"
    )


def _require_plain_numbers(weights: Mapping[str, Any], path: Path) -> None:
    """Refuse layers numbered in the millions: spandrel would build as many."""
    parts = (part for name in weights for part in str(name).split("."))
    numbers = [int(part[:9]) for part in parts if part.isdecimal()]
    if max(numbers, default=0) > 10 * len(weights):
        raise UnsupportedModelError(
            f"{path.name} has a layer {max(numbers)}, but only {len(weights)} weights; it is "
            "damaged. Download it again."
        )


def _registry() -> tuple[ArchRegistry, bool]:
    """Every architecture installed, and whether the extra ones are; spandrel's own list is kept."""
    from spandrel import MAIN_REGISTRY

    registry = MAIN_REGISTRY.copy()
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        return registry, False
    registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return registry, True


def _gfpgan(network: nn.Module, faces: Tensor, fidelity: float) -> Tensor:
    # The noise kept in the file, not a new draw: the same face gives the same picture.
    return network(faces, return_rgb=False, randomize_noise=False)[0]


def _restoreformer(network: nn.Module, faces: Tensor, fidelity: float) -> Tensor:
    return network(faces)[0]


def _codeformer(network: nn.Module, faces: Tensor, fidelity: float) -> Tensor:
    return network(faces, weight=fidelity)[0]


# How a network is run whose pixels are -1..1 on both sides, by spandrel's name of it. spandrel's
# own call is not used: it passes 0..1 to GFPGAN and CodeFormer, and draws GFPGAN's noise anew.
_RUN: dict[str, Callable[[nn.Module, Tensor, float], Tensor]] = {
    "GFPGAN": _gfpgan,
    "RestoreFormer": _restoreformer,
    "CodeFormer": _codeformer,
}


@dataclass(frozen=True, eq=False)
class FaceRestorer:
    """GFPGAN 1.2 to 1.4, RestoreFormer or CodeFormer; fits `Restorer`.

    model: as `load_image_model` or ComfyUI's Load Upscale Model returns it.
    fidelity: CodeFormer's w: 0 the cleanest face, 1 the nearest to what came in; the others have
        no such setting.

    Raises UnsupportedModelError for another network, InputError for a fidelity outside 0..1.
    """

    model: ImageModelDescriptor[nn.Module]
    fidelity: float = 0.5

    def __post_init__(self) -> None:
        if architecture_of(self.model) not in _RUN:
            raise UnsupportedModelError(
                f"{architecture_of(self.model)} does not restore faces; expected one of "
                f"{', '.join(_RUN)}. For super-resolution use Upscale Portrait."
            )
        if not 0 <= self.fidelity <= 1:
            raise InputError(f"The fidelity is {self.fidelity:g}; expected a number from 0 to 1.")

    @torch.no_grad()
    def __call__(self, faces: Tensor) -> Tensor:
        """Restore faces (B,3,512,512), RGB in 0..1, on the model's device; they return to theirs.

        Raises InputError for another size.
        """
        if faces.shape[1:] != (3, HEAD_SIZE, HEAD_SIZE):
            raise InputError(
                f"Faces came in as {tuple(faces.shape)}; face restoration takes "
                f"(B, 3, {HEAD_SIZE}, {HEAD_SIZE}), aligned."
            )
        run = _RUN[architecture_of(self.model)]
        signed = 2 * faces.to(self.model.device, self.model.dtype) - 1
        restored = run(self.model.model, signed, self.fidelity)
        return ((restored.float() + 1) / 2).clamp(0, 1).to(faces.device)


def architecture_of(model: ImageModelDescriptor[nn.Module]) -> str:
    """spandrel's name of a model's architecture ("ESRGAN", "Compact", "GFPGAN").

    Raises InputError for what spandrel did not load.
    """
    architecture = getattr(model, "architecture", None)
    if architecture is None:
        raise InputError(
            f"The model is a {type(model).__name__}; expected one that spandrel has loaded."
        )
    return str(architecture.id)
