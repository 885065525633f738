"""The model files that MagiCapture can use, where they are published, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

Role = Literal["detector", "parser", "embedder", "restorer"]


@dataclass(frozen=True)
class ModelFile:
    """A file the user may bring.

    file: its customary name. folder: where it belongs, below ComfyUI's models folder.
    published: repository and release. licence: of the weights, as far as stated.
    names: patterns of the names it goes by; empty for `file` alone.
    normalisation: what a face embedder's pixels are scaled by.
    """

    role: Role
    file: str
    folder: str
    published: str
    licence: str
    names: tuple[str, ...] = ()
    normalisation: str = "arcface"

    def is_called(self, name: str) -> bool:
        """Whether a file of this name is taken to be this one."""
        return any(fnmatch(name.lower(), n.lower()) for n in self.names or (self.file,))

    def __str__(self) -> str:
        return (
            f"{self.file} in models/{self.folder} (published in {self.published}; "
            f"licence: {self.licence})"
        )


_INSIGHTFACE = "non-commercial research"
_PACK = "the repository deepinsight/insightface, release v0.7, {}.zip"
_FACEXLIB = "the repository xinntao/facexlib, release {}"

MODELS: tuple[ModelFile, ...] = (
    ModelFile(
        "detector",
        "det_10g.onnx",
        "insightface/models/buffalo_l",
        _PACK.format("buffalo_l"),
        _INSIGHTFACE,
    ),
    ModelFile(
        "detector",
        "scrfd_10g_bnkps.onnx",
        "insightface/models/antelopev2",
        _PACK.format("antelopev2"),
        _INSIGHTFACE,
        ("scrfd_*kps*.onnx", "det_*.onnx"),
    ),
    ModelFile(
        "detector",
        "detection_Resnet50_Final.pth",
        "facexlib",
        _FACEXLIB.format("v0.1.0"),
        "MIT",
    ),
    ModelFile(
        "detector",
        "detection_mobilenet0.25_Final.pth",
        "facexlib",
        _FACEXLIB.format("v0.1.0"),
        "MIT",
        ("*mobilenet0.25_Final.pth",),
    ),
    ModelFile(
        "detector",
        "face_detection_yunet_2023mar.onnx",
        "facexlib",
        "the repository opencv/opencv_zoo, folder models/face_detection_yunet",
        "MIT",
        ("*yunet*.onnx",),
    ),
    ModelFile(
        "parser",
        "parsing_bisenet.pth",
        "facexlib",
        _FACEXLIB.format("v0.2.0"),
        "MIT; trained on CelebAMask-HQ, which is for non-commercial research",
    ),
    ModelFile(
        "parser",
        "parsing_parsenet.pth",
        "facexlib",
        _FACEXLIB.format("v0.2.2"),
        "MIT; trained on CelebAMask-HQ, which is for non-commercial research",
    ),
    ModelFile(
        "embedder",
        "glintr100.onnx",
        "insightface/models/antelopev2",
        _PACK.format("antelopev2"),
        _INSIGHTFACE,
    ),
    ModelFile(
        "embedder",
        "w600k_r50.onnx",
        "insightface/models/buffalo_l",
        _PACK.format("buffalo_l"),
        _INSIGHTFACE,
        ("w600k_*.onnx",),
    ),
    ModelFile(
        "embedder",
        "recognition_arcface_ir_se50.pth",
        "facexlib",
        _FACEXLIB.format("v0.1.0"),
        "MIT; trained on MS-Celeb-1M, which is for non-commercial research",
    ),
    ModelFile(
        "restorer",
        "GFPGANv1.4.pth",
        "facerestore_models",
        "the repository TencentARC/GFPGAN, release v1.3.4",
        "Apache-2.0, with parts of StyleGAN2 for non-commercial use",
        ("GFPGANv1.[234].pth",),
    ),
    ModelFile(
        "restorer",
        "RestoreFormer.pth",
        "facerestore_models",
        "the repository TencentARC/GFPGAN, release v1.3.4",
        "Apache-2.0",
        ("RestoreFormer*.pth", "RestoreFormer*.ckpt"),
    ),
    ModelFile(
        "restorer",
        "codeformer.pth",
        "facerestore_models",
        "the repository sczhou/CodeFormer, release v0.1.0",
        "S-Lab License 1.0, non-commercial",
        ("codeformer*.pth",),
    ),
)
"""Best first within a role; the first one found is taken where the user names none."""

FOLDERS = ("insightface", "facexlib", "facedetection", "facerestore_models", "magicapture")
"""Folders below ComfyUI's models folder that these files may lie in, sub-folders included."""

ENDINGS: dict[Role, tuple[str, ...]] = {
    "detector": (".onnx", ".pth", ".safetensors"),
    "parser": (".pth", ".safetensors"),
    "embedder": (".onnx", ".pt", ".pts", ".pth", ".torchscript", ".safetensors"),
    "restorer": (".pth", ".ckpt", ".safetensors"),
}
"""Endings of the files that are read for each role."""


def known(name: str) -> ModelFile | None:
    """The entry of the table that a file of this name is taken to be, or None."""
    exact = (m for m in MODELS if m.file.lower() == name.lower())
    return next(exact, None) or next((m for m in MODELS if m.is_called(name)), None)
