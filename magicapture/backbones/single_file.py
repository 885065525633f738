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
from .parts import Parts, vae_dtype
from .reading import read_tokenizer
from .renaming import below, open_clip_weights, unet_weights, vae_weights
from .support import BETAS, ENCODERS, family_of
from .taesd import taesd_from

_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_TINY_HALVES = ("encoder", "decoder")


def parts_of_file(path: Path, dtype: torch.dtype, words: Any = None) -> Parts:
    """The parts of a single-file checkpoint; words: a tokenizer in place of CLIP's.

    Raises StorageError for a damaged file, UnsupportedModelError for another model or one that
    lacks some of its weights.
    """
    weights = shapes.with_usual_names(read_tensors(path, mapped=True))
    with understood(path):
        configs = shapes.configs(weights)
        texts = {key: configs[key] for key in ENCODERS.values() if key in configs}
        widths = [config["hidden_size"] for config in texts.values()]
        family = family_of(configs["unet"], configs["vae"], widths)
        unet = _unet(configs["unet"], weights, dtype, path)
        vae = _vae(configs["vae"], weights, vae_dtype(family, dtype), path)
        encoders = {key: _text_encoder(c, weights, dtype, path) for key, c in texts.items()}
    if words is None:
        with TemporaryDirectory(prefix="magicapture-") as folder:
            write_tokenizer(Path(folder))
            words = read_tokenizer(Path(folder))
    scheduler = {**BETAS, **shapes.schedule(weights)}
    return Parts(family, unet, vae, encoders, dict.fromkeys(encoders, words), scheduler)


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
    if config["hidden_act"] == "quick_gelu":
        own = below(weights, shapes.CLIP)
    else:
        own = open_clip_weights(below(weights, shapes.OPEN_CLIP), config["num_hidden_layers"])
    return build_text_encoder(config, own, dtype, path)
