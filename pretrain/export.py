"""From training folder to shipped weights: a Stable Diffusion folder and readers, all in half."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from magicapture.paperdoll.networks import schedule, transformer
from magicapture.paperdoll.tokenizer import write_tokenizer

from .loop import averaged, state_file, write_tensors
from .preview import Model
from .stage_readers import EMBEDDERS, MODELS, STEPS

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

log = logging.getLogger(__name__)

_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderTiny"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


def export(out: Path, target: Path) -> Path:
    """Writes what is trained: a diffusers folder, the transformer's, a file for each reader."""
    target.mkdir(parents=True, exist_ok=True)
    if state_file(out, "unet").exists():
        _pipeline(out, target)
    if state_file(out, "transformer").exists():
        _saved(trained_transformer(out), target / "transformer")
    for name in STEPS:
        if state_file(out, name).exists():
            tensors = {k: v.half() for k, v in reader_tensors(out, name).items()}
            write_tensors(target / f"{name}.safetensors", tensors, {"network": name})
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    log.info("%s holds %.1f MB", target, size / 1e6)
    return target


def _pipeline(out: Path, target: Path) -> None:
    model = Model.of_run(out)
    networks: dict[str, Any] = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text}
    for name, network in networks.items():
        _saved(network, target / name)
    write_tokenizer(target / "tokenizer")
    schedule().save_pretrained(target / "scheduler")
    absent = {"safety_checker": (None, None), "feature_extractor": (None, None)}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    text = json.dumps(index | _CLASSES | absent, indent=2)
    (target / "model_index.json").write_text(text, encoding="utf-8")


def _saved(network: Any, folder: Path) -> None:
    network.half().save_pretrained(folder, safe_serialization=True)


def trained_transformer(out: Path) -> FluxTransformer2DModel:
    """The transformer with the averaged weights of a training folder."""
    network = transformer()
    network.load_state_dict(averaged(out, "transformer"))
    return network.eval().requires_grad_(False)  # type: ignore[return-value]


def reader_tensors(out: Path, name: str) -> dict[str, Tensor]:
    """A reader's averaged weights as its own class loads them, without the margin's centres."""
    tensors = averaged(out, name)
    if not name.startswith("identity"):
        return tensors
    prefix = "embedder."
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def trained_reader(out: Path, name: str) -> nn.Module:
    """A reader with the averaged weights of a training folder, ready to read."""
    network = EMBEDDERS[name][0]() if name in EMBEDDERS else MODELS[name]()
    network.load_state_dict(reader_tensors(out, name))
    return network.eval()
