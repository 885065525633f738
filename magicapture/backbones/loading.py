"""Loading a backbone from a diffusers folder or a single-file checkpoint, with no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import StorageError
from ..schedule import DiscreteLevels, Prediction, Schedule
from ..weight_files import PICKLES, SAFETENSORS
from .building import build_text_encoder, build_unet, build_vae, understood
from .diffusers import DiffusersBackbone
from .reading import read_json, read_part, read_tokenizer
from .renaming import vae_weights
from .single_file import parts_of_file
from .support import BETAS, MODELS, family_of, refuse
from .taesd import load_taesd

_FOREIGN_PARTS = {
    "text_encoder_2": "an SDXL model",
    "transformer": "a diffusion transformer (Stable Diffusion 3, Flux and the like)",
    "prior": "a model of several stages",
}
_FILES = (SAFETENSORS, *PICKLES)
_SCHEDULER = Path("scheduler", "scheduler_config.json")
_MOST_STEPS = 100_000
"""No schedule has more; a number out of a damaged file could fill the memory."""


def load_backbone(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    decoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    prediction_type: Prediction | None = None,
) -> DiffusersBackbone:
    """Load an SD 1.x or 2.x model from a diffusers folder or a .safetensors or .ckpt file.

    decoder: TAESD, for losses and previews; see `load_taesd`. tokenizer: a folder with vocab.json
    and merges.txt, for a text encoder with words other than CLIP's. prediction_type: what the
    UNet predicts, where the folder or the rule of `shapes.prediction_type` is wrong.

    All parts are frozen and in evaluation mode. Nothing is downloaded. Of a folder only
    .safetensors files are read. Raises StorageError for a file that cannot be read, InputError for
    one that could hold code, UnsupportedModelError for a model of another kind or without some of
    its weights.
    """
    path = Path(path)
    if path.is_dir():
        tokenizer = tokenizer or path / "tokenizer"
        parts, scheduler = _from_folder(path, dtype)
        source = path / _SCHEDULER
    elif path.is_file() and path.suffix.lower() in _FILES:
        parts, scheduler = parts_of_file(path, dtype)
        source = path
    else:
        raise StorageError(
            f"There is no model at {path}: expected a diffusers folder, or a file ending in "
            f"{', '.join(_FILES)}."
        )
    backbone = DiffusersBackbone(
        unet=parts["unet"],
        vae=parts["vae"],
        text_encoders={"clip_l": parts["text_encoder"]},
        tokenizers={"clip_l": read_tokenizer(Path(tokenizer)) if tokenizer else parts["tokenizer"]},
        schedule=_schedule(scheduler, prediction_type, source),
        decoder=load_taesd(decoder).to(dtype) if decoder else None,
    )
    for module in backbone.modules.values():
        module.to(device).eval().requires_grad_(False)
    return backbone


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The parts of a diffusers folder and its scheduler's config."""
    index = read_json(folder / "model_index.json")
    for part, kind in _FOREIGN_PARTS.items():
        if index.get(part) not in (None, [None, None]):
            refuse(f"{kind} ({_short(index.get('_class_name'))})")
    unet, vae, text = (read_json(folder / part / "config.json") for part in MODELS)
    if text.get("model_type") not in ("clip_text_model", "clip"):
        refuse(f"one with a text encoder of the kind {_short(text.get('model_type'))}")
    if vae.get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
        refuse(f"one with a VAE of the kind {_short(vae.get('_class_name'))}")
    with understood(folder):
        family_of(unet, vae, [text["hidden_size"]])  # refused before gigabytes are read
    scheduler = read_json(folder / _SCHEDULER)

    stem = "diffusion_pytorch_model"
    vae_tensors = read_part(folder / "vae", stem)
    if vae["_class_name"] == "AutoencoderKL":
        vae_tensors = vae_weights(vae_tensors)
    return {
        "unet": build_unet(unet, read_part(folder / "unet", stem), dtype, folder),
        "vae": build_vae(vae, vae_tensors, dtype, folder),
        "text_encoder": build_text_encoder(
            text, read_part(folder / "text_encoder", "model"), dtype, folder
        ),
    }, scheduler


def _short(value: object) -> str:
    """For a message: a damaged file may hold a value of any length."""
    return str(value)[:60]


def _schedule(
    config: Mapping[str, Any], prediction_type: Prediction | None, source: Path
) -> Schedule:
    """The noise schedule of a diffusers scheduler's config; StorageError where it is none."""
    from diffusers import DDIMScheduler

    keys = ("num_train_timesteps", "trained_betas", "rescale_betas_zero_snr", *BETAS)
    predicts = prediction_type or config.get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        refuse(f"one that predicts {predicts!r:.60}")
    with understood(source):
        if not 1 < config.get("num_train_timesteps", 1000) <= _MOST_STEPS:
            raise ValueError("num_train_timesteps")
        scheduler: Any = DDIMScheduler(**{key: config[key] for key in keys if key in config})
        alphas = scheduler.alphas_cumprod.float()
        if not (len(alphas) > 1 and 0 < alphas[0] < 1 and alphas[-1] >= 0):
            raise ValueError("betas")
        if not (alphas.diff() < 0).all():
            raise ValueError("betas")
    return Schedule(DiscreteLevels(alphas), predicts)
