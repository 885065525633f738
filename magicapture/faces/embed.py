"""Face embedders as differentiable modules: aligned faces in, embeddings out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, MagiCaptureError, StorageError
from ..weight_files import may_hold_code
from .align import FACE_SIZE
from .models import ENDINGS
from .script import SCRIPTS, load_script
from .weights import filled, read_weights

logger = logging.getLogger(__name__)


class FaceEmbedder(Protocol):
    """Anything that embeds aligned faces differentiably; one person's have a high cosine."""

    def __call__(self, faces: Tensor, /) -> Tensor:
        """Faces (B,3,112,112) RGB in 0..1 to embeddings (B,D)."""


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std for each of R, G, B in 0..1: what a face embedder was trained on."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS = {
    "arcface": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # (x - 127.5) / 127.5 of 0..255
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class FaceEmbeddingNetwork(nn.Module):
    """A frozen network with its normalisation; fits `FaceEmbedder` and computes in float32.

    batched: whether the network takes several faces at once; an ONNX file exported for one face
    may not, and is then run face by face. name: what reports call it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        normalisation: Normalisation,
        *,
        batched: bool = True,
        name: str = "",
    ) -> None:
        super().__init__()
        self.network, self.batched, self.name = network, batched, name
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(3, 1, 1))
        self.float().eval().requires_grad_(False)

    def forward(self, faces: Tensor) -> Tensor:
        """Faces (B,3,112,112) in 0..1 to embeddings (B,D)."""
        with torch.autocast(faces.device.type, enabled=False):
            normal = (faces.float() - self.mean) / self.std
            batches = (normal,) if self.batched else normal.split(1)
            return torch.cat([self.network(batch) for batch in batches])


def name_of(embedder: FaceEmbedder | None) -> str:
    """What reports call a face embedder: the name of its file; empty where it has none."""
    return getattr(embedder, "name", "")


def load_face_embedder(
    path: str | Path, normalisation: Normalisation | str = "arcface"
) -> FaceEmbeddingNetwork:
    """A face embedder from an ONNX file, TorchScript, or the weights of facexlib's ArcFace ir_se50.

    normalisation: a `Normalisation`, "arcface" (InsightFace's models) or "imagenet". The network
    is tried with 112x112 faces before it is returned. TorchScript (.pt, .pts, .torchscript) runs
    the code in it: give only a file that you trust. Raises StorageError for a file that is missing
    or damaged, InputError for one that does not embed 112x112 faces differentiably, or is
    TorchScript under another ending.
    """
    path = Path(path)
    if isinstance(normalisation, str):
        if normalisation not in NORMALISATIONS:
            raise InputError(
                f"No normalisation is called {normalisation!r}; there are "
                f"{', '.join(NORMALISATIONS)}."
            )
        normalisation = NORMALISATIONS[normalisation]
    if not path.is_file():
        raise StorageError(
            f"There is no face recognition model at {path}; give an .onnx or .pt file."
        )
    with torch.inference_mode(False):  # tensors made in it could never take part in a gradient
        embedder = FaceEmbeddingNetwork(_reader(path)(path), normalisation, name=path.name)
        _try(embedder, path.name)
    return embedder


def _reader(path: Path) -> Callable[[Path], nn.Module]:
    ending = path.suffix.lower()
    if ending == ".onnx":
        return _from_onnx
    if ending not in ENDINGS["embedder"]:
        raise InputError(
            f"{path.name} cannot be read as a face recognition model; expected a file ending in "
            f"{', '.join(ENDINGS['embedder'])}."
        )
    if ending in SCRIPTS and (may_hold_code(path) or ending != ".pt"):
        return load_script
    return _from_weights  # which refuses TorchScript under an ending that promises weights


def _from_weights(path: Path) -> nn.Module:
    weights = read_weights(path)
    if "output_layer.3.weight" not in weights or "body.0.res_layer.5.fc1.weight" not in weights:
        raise InputError(
            f"{path.name} holds no weights of facexlib's ArcFace; expected "
            "recognition_arcface_ir_se50.pth, an .onnx file or a TorchScript one."
        )
    try:
        from facexlib.recognition.arcface_arch import Backbone
    except ImportError as error:
        raise MagiCaptureError(
            f"Reading {path.name} needs the package facexlib; install it with 'pip install "
            "facexlib', or give an .onnx file."
        ) from error
    return filled(Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"), weights, path.name)


def _from_onnx(path: Path) -> nn.Module:
    try:
        import onnx
        import onnx2torch
    except ImportError as error:
        raise MagiCaptureError(
            "Reading an ONNX face recognition model needs the package onnx2torch; install it with "
            "'pip install onnx2torch', or give a TorchScript file."
        ) from error
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own error types
        raise StorageError(
            f"{path.name} is damaged or not an ONNX model ({error}); download it again."
        ) from error
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    shapes = [[d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in inputs]
    if len(shapes) != 1 or not _fits(shapes[0]):
        raise InputError(
            f"{path.name} takes inputs of shape {shapes}; expected one of "
            f"[faces, 3, {FACE_SIZE}, {FACE_SIZE}], as ArcFace models have. A detector or another "
            "model was given."
        )
    try:
        return onnx2torch.convert(model)
    except NotImplementedError as error:
        raise InputError(
            f"{path.name} has an operation without a differentiable form ({error}); give another "
            "export of the model, or a TorchScript file."
        ) from error
    except Exception as error:  # of a graph without nodes, or whose nodes lead nowhere
        raise InputError(
            f"{path.name} holds no network that turns faces into embeddings; download it again, "
            "or give an ArcFace-like face recognition model."
        ) from error


def _fits(shape: list[int | None]) -> bool:
    """Whether an input's shape, None where it is open, can be (B,3,112,112)."""
    wanted = (3, FACE_SIZE, FACE_SIZE)
    return len(shape) == 4 and all(
        size in (None, want) for size, want in zip(shape[1:], wanted, strict=True)
    )


def _try(embedder: FaceEmbeddingNetwork, name: str) -> None:
    """Embed two faces, alone and together; raise InputError unless it works, with a gradient."""
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(2, 3, FACE_SIZE, FACE_SIZE, generator=generator).requires_grad_()
    with torch.enable_grad():
        try:
            alone = torch.cat([embedder(face[None]) for face in faces])
            (gradient,) = torch.autograd.grad(alone.square().sum(), faces)
        except Exception as error:  # whatever a foreign network raises
            raise InputError(
                f"{name} does not embed a face of 3x{FACE_SIZE}x{FACE_SIZE} differentiably "
                f"({error}); give an ArcFace-like face recognition model."
            ) from error
    shape = tuple(alone.shape)
    if len(shape) != 2 or shape[0] != 2 or not alone.isfinite().all() or not gradient.any():
        raise InputError(
            f"{name} turns two faces into {shape} numbers, or its gradient is nowhere; expected "
            "finite embeddings (2, D) that depend on the pixels."
        )
    try:
        with torch.no_grad():
            together = embedder(faces)
        embedder.batched = together.shape == alone.shape and torch.allclose(
            together, alone, rtol=1e-3, atol=1e-4
        )
    except Exception:  # an export fixed to one face; running face by face is right for it
        embedder.batched = False
    if not embedder.batched:
        logger.info("%s takes one face at a time.", name)
