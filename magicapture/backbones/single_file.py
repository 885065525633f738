"""Loading the parts of a single-file checkpoint, in the original latent-diffusion layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..weight_files import read_tensors
from . import shapes
from .building import build_text_encoder, build_unet, build_vae, understood
from .clip_tokenizer import write_tokenizer
from .reading import read_tokenizer
from .renaming import below, open_clip_weights, unet_weights, vae_weights
from .support import BETAS, family_of
from .taesd import taesd_from

_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_TINY_HALVES = ("encoder", "decoder")


def parts_of_file(path: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The parts of a single-file checkpoint and SD's scheduler config.

    Raises StorageError for a damaged file, UnsupportedModelError for another model or one that
    lacks some of its weights.
    """
    weights = shapes.with_text_model(read_tensors(path, mapped=True))
    with understood(path):
        configs = shapes.configs(weights)
        family_of(configs["unet"], configs["vae"], [configs["text_encoder"]["hidden_size"]])
        parts = {
            "unet": _unet(configs["unet"], weights, dtype, path),
            "vae": _vae(configs["vae"], weights, dtype, path),
            "text_encoder": _text_encoder(configs["text_encoder"], weights, dtype, path),
        }
    with TemporaryDirectory(prefix="magicapture-") as folder:
        write_tokenizer(Path(folder))
        parts["tokenizer"] = read_tokenizer(Path(folder))
    return parts, {**BETAS, "prediction_type": shapes.prediction_type(weights)}


def _unet(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, path: Path
) -> nn.Module:
    renamed = unet_weights(below(weights, shapes.UNET), config["layers_per_block"])
    return build_unet(config, renamed, dtype, path)


def _vae(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, path: Path
) -> nn.Module:
    if config["_class_name"] == "AutoencoderTiny":  # as ComfyUI keeps it inside a checkpoint
        halves = {part: below(weights, f"{shapes.TINY_VAE}{part}.") for part in _TINY_HALVES}
        return taesd_from(halves).to(dtype)
    # Some files keep what the VAE was trained with, its discriminator above all.
    own = {k: v for k, v in below(weights, shapes.VAE).items() if k.startswith(_VAE_PARTS)}
    return build_vae(config, vae_weights(own), dtype, path)


def _text_encoder(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, path: Path
) -> nn.Module:
    own = below(weights, shapes.CLIP)
    if not own:
        own = open_clip_weights(below(weights, shapes.OPEN_CLIP), config["num_hidden_layers"])
    return build_text_encoder(config, own, dtype, path)
