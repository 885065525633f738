"""Loading a backbone from a diffusers folder or a single-file checkpoint, with no network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import StorageError
from ..families import FAMILIES, FamilyName, NetworkName
from ..schedule import DiscreteLevels, Prediction, Schedule, flow_levels
from ..weight_files import PICKLES, SAFETENSORS
from .autoencoders import AUTOENCODERS
from .building import (
    build_qwen,
    build_t5,
    build_text_encoder,
    build_transformer,
    build_unet,
    build_vae,
    of_words,
    understood,
)
from .diffusers import DiffusersBackbone
from .parts import Parts, vae_dtype
from .reading import TokenizerName, read_json, read_part, read_tokenizer
from .renaming import vae_weights
from .single_file import parts_of_file
from .support import BETAS, ENCODERS, QWENS, T5, TRANSFORMERS, family_of, refuse
from .taesd import load_taesd

_FOREIGN_PARTS = {
    "text_encoder_3": "a diffusion transformer (Stable Diffusion 3 and the like)",
    "prior": "a model of several stages",
    "processor": "a model that edits pictures",
}
_KEYS = {"t5": (T5,), **QWENS}
_BUILD = {"t5": build_t5, **dict.fromkeys(QWENS, build_qwen)}
_TOKENIZERS: Mapping[str, TokenizerName] = {
    T5: "t5",
    **{key: "qwen" for keys in QWENS.values() for key in keys},
}
"""Text encoders other than CLIP by their kind in transformers: keys, builder, and tokenizer."""
_FILES = (SAFETENSORS, *PICKLES)
_SCHEDULER = Path("scheduler", "scheduler_config.json")
_LARGEST_SHIFT = 100
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
    """Load a model from a diffusers folder, or SD 1.x, 2.x or XL from a .safetensors or .ckpt file.

    decoder: TAESD, for losses and previews; see `load_taesd`. tokenizer: a folder with vocab.json
    and merges.txt, for a text encoder with words other than CLIP's. prediction_type: what the
    UNet predicts, where the folder or the rule of `shapes.prediction_type` is wrong.

    All parts are frozen and in evaluation mode. Nothing is downloaded. Of a folder only
    .safetensors files are read. Raises StorageError for a file that cannot be read, InputError for
    one that could hold code, UnsupportedModelError for a model of another kind or without some of
    its weights.
    """
    path, words = Path(path), None if tokenizer is None else read_tokenizer(Path(tokenizer))
    if path.is_dir():
        parts = _from_folder(path, dtype, words)
        source = path / _SCHEDULER
    elif path.is_file() and path.suffix.lower() in _FILES:
        parts = parts_of_file(path, dtype, words)
        source = path
    else:
        raise StorageError(
            f"There is no model at {path}: expected a diffusers folder, or a file ending in "
            f"{', '.join(_FILES)}."
        )
    backbone = DiffusersBackbone(
        unet=parts.unet,
        vae=parts.vae,
        text_encoders=parts.text_encoders,
        tokenizers=parts.tokenizers,
        schedule=_schedule(parts.scheduler, prediction_type, source, parts.family),
        decoder=load_taesd(decoder).to(dtype) if decoder else None,
    )
    for module in backbone.modules.values():
        module.to(device).eval().requires_grad_(False)
    return backbone


def _from_folder(folder: Path, dtype: torch.dtype, words: Any) -> Parts:
    """The parts of a diffusers folder; words: a tokenizer in place of its own."""
    index = read_json(folder / "model_index.json")
    for part, kind in _FOREIGN_PARTS.items():
        if index.get(part) not in (None, [None, None]):
            refuse(f"{kind} ({_short(index.get('_class_name'))})")
    network = _network(index)
    present = [name for name in ENCODERS if index.get(name) not in (None, [None, None])]
    encoders = present or ["text_encoder"]
    unet, vae = (read_json(folder / part / "config.json") for part in (network, "vae"))
    texts = {name: read_json(folder / name / "config.json") for name in encoders}
    known = ("clip_text_model", "clip", *(_KEYS if network == "transformer" else ()))
    for text in texts.values():
        if _kind(text) not in known:
            refuse(f"one with a text encoder of the kind {_kind(text)}")
    if vae.get("_class_name") not in AUTOENCODERS:
        refuse(f"one with a VAE of the kind {_short(vae.get('_class_name'))}")
    with understood(folder):  # refused before gigabytes are read
        widths = [
            of_words(text)["d_model" if _kind(text) == "t5" else "hidden_size"]
            for text in texts.values()
        ]
        family = family_of(unet, vae, widths)
    own = FAMILIES[family].keys
    may = {name: _KEYS.get(_kind(text), (ENCODERS[name],)) for name, text in texts.items()}
    keys = {name: next((key for key in of if key in own), of[0]) for name, of in may.items()}
    if set(keys.values()) != set(FAMILIES[family].keys):
        kinds = " and ".join(_kind(text) for text in texts.values())
        refuse(f"a {FAMILIES[family].title} with a text encoder of the kind {kinds}")
    layers = index.get("text_encoder_select_layers")
    if layers and tuple(layers) not in [e.layers for e in FAMILIES[family].encoders]:
        refuse(f"a {FAMILIES[family].title} that reads other layers of its text encoder")
    scheduler = read_json(folder / _SCHEDULER)
    if _short(scheduler.get("_class_name")).startswith("EDM"):
        refuse("one of the EDM kind (its noise levels have no timesteps)")

    stem = "diffusion_pytorch_model"
    vae_tensors = read_part(folder / "vae", stem)
    if vae["_class_name"] == "AutoencoderKL":
        vae_tensors = vae_weights(vae_tensors)
    build = build_transformer if network == "transformer" else build_unet
    return Parts(
        family=family,
        unet=build(unet, read_part(folder / network, stem), dtype, folder),
        vae=build_vae(vae, vae_tensors, vae_dtype(family, dtype), folder),
        text_encoders={
            keys[name]: _BUILD.get(_kind(text), build_text_encoder)(
                text, read_part(folder / name, "model"), dtype, folder
            )
            for name, text in texts.items()
        },
        tokenizers={
            key: (words if words is not None and key not in _TOKENIZERS else None)
            or read_tokenizer(
                folder / name.replace("text_encoder", "tokenizer"), _TOKENIZERS.get(key, "clip")
            )
            for name, key in keys.items()
        },
        scheduler=scheduler,
    )


def _network(index: Mapping[str, Any]) -> NetworkName:
    """The folder of the network that predicts; raises UnsupportedModelError for other classes."""
    if (kind := index.get("transformer")) in (None, [None, None]):
        return "unet"
    name = _short(kind[-1] if isinstance(kind, list) and kind else kind)
    if name not in TRANSFORMERS:
        refuse(f"a diffusion transformer ({name})")
    return "transformer"


def _kind(text: Mapping[str, Any]) -> str:
    """What transformers calls a text encoder's kind, "t5"."""
    return _short(text.get("model_type"))


def _short(value: object) -> str:
    """For a message: a damaged file may hold a value of any length."""
    return str(value)[:60]


def _schedule(
    config: Mapping[str, Any],
    prediction_type: Prediction | None,
    source: Path,
    family: FamilyName,
) -> Schedule:
    """The noise schedule of a diffusers scheduler's config; StorageError where it is none."""
    from diffusers import DDIMScheduler

    if "Flow" in _short(config.get("_class_name")):
        with understood(source):
            facts = FAMILIES[family]
            return Schedule(flow_levels(_shift(config, facts.mu), facts.drawn_shift), "flow")
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


def _shift(config: Mapping[str, Any], mu: float | None) -> float:
    """The shift of a flow's levels; where it grows with the picture, that of the largest.

    mu: its logarithm there, where a family has its own.
    """
    moves, largest = config.get("use_dynamic_shifting"), mu or config.get("max_shift", 1.15)
    shift = math.exp(largest) if moves else float(config.get("shift", 1.0))
    if not 0 < shift < _LARGEST_SHIFT:
        raise ValueError("shift")
    return shift
