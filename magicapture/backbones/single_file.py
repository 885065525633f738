"""Loading the parts of a single-file checkpoint, in the original latent-diffusion layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from . import shapes
from .clip_tokenizer import write_tokenizer
from .reading import errors_only, read_tensors
from .support import BETAS, MODELS, SUPPORTED, family_of
from .taesd import taesd_from


def parts_of_file(path: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The parts of a single-file checkpoint and SD's scheduler config.

    diffusers takes the configs from a folder, and would otherwise fetch them from the network.
    """
    from diffusers import StableDiffusionPipeline

    weights = read_tensors(path)
    configs = shapes.configs(weights)
    family_of(configs["unet"], configs["vae"], [configs["text_encoder"]["hidden_size"]])
    scheduler = {**BETAS, "prediction_type": shapes.prediction_type(weights)}
    ready = (
        {"vae": _tiny_vae(weights).to(dtype)}
        if configs["vae"]["_class_name"] == "AutoencoderTiny"
        else {}
    )
    with TemporaryDirectory(prefix="magicapture-") as folder, errors_only():
        _write_configs(Path(folder), configs)
        try:
            pipeline = StableDiffusionPipeline.from_single_file(
                str(path),
                config=folder,
                torch_dtype=dtype,
                local_files_only=True,
                requires_safety_checker=False,
                **ready,
            )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UnsupportedModelError(
                f"{path} cannot be loaded: weights are missing, or it is not {SUPPORTED}. "
                f"diffusers says: {error}"
            ) from error
    return {part: getattr(pipeline, part) for part in (*MODELS, "tokenizer")}, scheduler


def _write_configs(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the parts' configs, the tokenizer and an index, as a diffusers folder has them."""
    scheduler = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **BETAS,
    }
    files = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", configs["vae"]["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
        "scheduler/scheduler_config.json": scheduler,
        **{f"{part}/config.json": config for part, config in configs.items()},
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    write_tokenizer(folder / "tokenizer")


def _tiny_vae(weights: Mapping[str, Tensor]) -> nn.Module:
    """TAESD as ComfyUI keeps it inside a checkpoint."""
    prefixes = {part: f"{shapes.TINY_VAE}{part}." for part in ("encoder", "decoder")}
    return taesd_from(
        {
            part: {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            for part, prefix in prefixes.items()
        }
    )
