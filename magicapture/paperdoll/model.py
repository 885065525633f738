"""The diffusion models of the drawn world, as backbones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..backbones import DiffusersBackbone, load_backbone
from ..families import FamilyName
from ..schedule import FlowLevels, Schedule
from .weights import WEIGHTS, model_folder, transformer_folder

ModelName = Literal["unet", "transformer"]

FAMILY_OF: Mapping[ModelName, FamilyName] = {"unet": "sd1", "transformer": "doll_flux"}


def doll_backbone(model: ModelName = "unet", folder: Path = WEIGHTS) -> DiffusersBackbone:
    """The UNet, or the transformer of Flux's class over the same VAE, text encoder and words.

    Float32 on the CPU, frozen. Raises StorageError where the weights are missing.
    """
    unet = load_backbone(model_folder(folder))
    if model == "unet":
        return unet
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel.from_pretrained(transformer_folder(folder))
    transformer.float().eval().requires_grad_(False)
    text, tokenizer = unet.text_encoders["clip_l"], unet.tokenizers["clip_l"]
    return transformer_backbone(transformer, unet.vae, text, tokenizer)


def transformer_backbone(
    transformer: Any, vae: Any, text_encoder: Any, tokenizer: Any
) -> DiffusersBackbone:
    """A transformer of Flux's class over the drawn world's VAE and words, from its parts."""
    return DiffusersBackbone(
        unet=transformer,
        vae=vae,
        text_encoders={"clip_l": text_encoder},
        tokenizers={"clip_l": tokenizer},
        schedule=Schedule(FlowLevels(), "flow"),
    )
