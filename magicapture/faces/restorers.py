"""The files of face restorers, which `refine.models` runs by spandrel."""

from __future__ import annotations

from .models import ModelFile, ModelKind

RESTORERS = (
    ModelKind(
        "restorer",
        "GFPGAN, RestoreFormer, CodeFormer (spandrel)",
        files=(
            ModelFile(
                "GFPGANv1.4.pth",
                "facerestore_models",
                "https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.4",
                "Apache-2.0, with parts of StyleGAN2 for non-commercial use",
                rank=10,
                names=("GFPGANv1.[234].pth",),
            ),
            ModelFile(
                "RestoreFormer.pth",
                "facerestore_models",
                "https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.4",
                "Apache-2.0",
                rank=20,
                names=("RestoreFormer*.pth", "RestoreFormer*.ckpt"),
            ),
            ModelFile(
                "codeformer.pth",
                "facerestore_models",
                "https://github.com/sczhou/CodeFormer/releases/tag/v0.1.0",
                "S-Lab License 1.0, non-commercial",
                rank=30,
                names=("codeformer*.pth",),
            ),
        ),
        endings=(".pth", ".ckpt", ".safetensors"),
        packages={"spandrel": "spandrel"},
    ),
)
