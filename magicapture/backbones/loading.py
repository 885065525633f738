"""Loading a backbone from a diffusers folder or a single-file checkpoint, with no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ..backbone import NoiseSchedule, PredictionType
from ..errors import StorageError, UnsupportedModelError
from .diffusers import DiffusersBackbone
from .reading import errors_only, no_progress_bars, read_tensors
from .single_file import parts_of_file
from .support import BETAS, MODELS, SUPPORTED, family_of, refuse
from .taesd import load_taesd

_FOREIGN_PARTS = {
    "text_encoder_2": "an SDXL model",
    "transformer": "a diffusion transformer (Stable Diffusion 3, Flux and the like)",
    "prior": "a model of several stages",
}
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def load_backbone(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    decoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    prediction_type: PredictionType | None = None,
) -> DiffusersBackbone:
    """Load an SD 1.x or 2.x model from a diffusers folder or a .safetensors or .ckpt file.

    decoder: TAESD, for losses and previews; see `load_taesd`. tokenizer: a folder with vocab.json
    and merges.txt, for a text encoder with words other than CLIP's. prediction_type: what the
    UNet predicts, where the folder or the rule of `shapes.prediction_type` is wrong.

    All parts are frozen and in evaluation mode. Nothing is downloaded. Raises StorageError for a
    file that cannot be read, UnsupportedModelError for a model of another kind or without one of
    its parts.
    """
    path = Path(path)
    if path.is_dir():
        tokenizer = tokenizer or path / "tokenizer"
        with no_progress_bars():
            parts, scheduler = _from_folder(path, dtype)
    elif path.is_file() and path.suffix.lower() in _FILES:
        with no_progress_bars():
            parts, scheduler = parts_of_file(path, dtype)
    else:
        raise StorageError(
            f"There is no model at {path}: expected a diffusers folder, or a file ending in "
            f"{', '.join(_FILES)}."
        )
    words = _clip_tokenizer(Path(tokenizer)) if tokenizer else parts["tokenizer"]
    backbone = DiffusersBackbone(
        unet=parts["unet"],
        vae=parts["vae"],
        text_encoders={"clip_l": parts["text_encoder"]},
        tokenizers={"clip_l": words},
        schedule=_schedule(scheduler, prediction_type),
        decoder=load_taesd(decoder).to(dtype) if decoder else None,
    )
    for name, module in backbone.modules.items():
        _require_complete(module, name, path)
        module.to(device).eval().requires_grad_(False)
    return backbone


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The parts of a diffusers folder and its scheduler's config."""
    import diffusers

    index = _json(folder / "model_index.json")
    for part, kind in _FOREIGN_PARTS.items():
        if (index.get(part) or [None])[0] is not None:
            refuse(f"{kind} ({index.get('_class_name')})")
    unet, vae, text = (_json(folder / part / "config.json") for part in MODELS)
    if text.get("model_type") not in ("clip_text_model", "clip"):
        refuse(f"one with a text encoder of the kind {text.get('model_type')}")
    if vae.get("_class_name") not in ("AutoencoderKL", "AutoencoderTiny"):
        refuse(f"one with a VAE of the kind {vae.get('_class_name')}")
    family_of(unet, vae, [text["hidden_size"]])  # refused before gigabytes are read

    options = {"torch_dtype": dtype, "local_files_only": True}
    try:
        with errors_only():  # AutoencoderTiny warns of a setting that it writes itself
            autoencoder = getattr(diffusers, vae["_class_name"])
            models = {"vae": autoencoder.from_pretrained(folder / "vae", **options)}
        models["unet"] = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **options)
        models["text_encoder"] = _text_encoder(folder / "text_encoder", options)
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"The model in {folder} cannot be loaded: {error}") from error
    return models, _json(folder / "scheduler" / "scheduler_config.json")


def _text_encoder(folder: Path, options: Mapping[str, Any]) -> Any:
    """CLIP's text encoder; raises StorageError where the file lacks some of its weights.

    transformers 5 writes names without "text_model.", which 4 does not know: it would go on with
    random weights.
    """
    from transformers import CLIPTextModel

    model, report = CLIPTextModel.from_pretrained(folder, output_loading_info=True, **options)
    if missing := set(report["missing_keys"]):
        weights = read_tensors(folder / "model.safetensors")
        longer = {f"text_model.{name}": value for name, value in weights.items()}
        if not missing <= longer.keys():
            raise StorageError(
                f"{folder} lacks {len(missing)} weights of the text encoder, such as "
                f"{min(missing)}; the file is incomplete. Fetch it again."
            )
        model.load_state_dict(longer, strict=False)
    return model


def _schedule(config: Mapping[str, Any], prediction_type: PredictionType | None) -> NoiseSchedule:
    """The noise schedule of a diffusers scheduler's config."""
    from diffusers import DDIMScheduler

    keys = ("num_train_timesteps", "trained_betas", "rescale_betas_zero_snr", *BETAS)
    predicts = prediction_type or config.get("prediction_type", "epsilon")
    if predicts not in get_args(PredictionType):
        refuse(f"one that predicts {predicts!r}")
    scheduler: Any = DDIMScheduler(**{key: config[key] for key in keys if key in config})
    # diffusers' stand-in for the 0 that a schedule rescaled to zero terminal SNR ends in
    return NoiseSchedule(scheduler.alphas_cumprod.float().clamp(min=2**-24), predicts)


def _require_complete(module: nn.Module, part: str, path: Path) -> None:
    """Refuse a model of which the file lacked some weights; diffusers leaves them on "meta"."""
    empty = [name for name, value in module.state_dict().items() if value.is_meta]
    if empty:
        raise UnsupportedModelError(
            f"{path} lacks {len(empty)} weights of the {part}, such as {empty[0]}; it is not "
            f"{SUPPORTED}, or the file is incomplete."
        )


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise StorageError(f"There is no tokenizer in {folder}: expected vocab.json, merges.txt.")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read, which a diffusers folder of {SUPPORTED} has: {error}"
        ) from error
