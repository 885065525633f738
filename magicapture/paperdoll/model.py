"""The diffusion models of the drawn world, as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..backbones import DiffusersBackbone, load_backbone
from ..schedule import FlowLevels, Schedule
from .weights import WEIGHTS, model_folder, transformer_folder

ModelName = Literal["unet", "transformer"]


def doll_backbone(model: ModelName = "unet", folder: Path = WEIGHTS) -> DiffusersBackbone:
    """The UNet, or the transformer of Flux's class over the same VAE, text encoder and words.

    Float32 on the CPU, frozen. Raises StorageError where the weights are missing.
    """
    unet = load_backbone(model_folder(folder))
    if model == "unet":
        return unet
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel.from_pretrained(transformer_folder(folder))
    return DiffusersBackbone(
        unet=transformer.float().eval().requires_grad_(False),
        vae=unet.vae,
        text_encoders=unet.text_encoders,
        tokenizers=unet.tokenizers,
        schedule=Schedule(FlowLevels(), "flow"),
    )
