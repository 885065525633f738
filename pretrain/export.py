"""From training folder to shipped weights: a Stable Diffusion folder and readers, all in half."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from magicapture.paperdoll.networks import schedule
from magicapture.paperdoll.tokenizer import write_tokenizer

from .loop import averaged, write_tensors
from .preview import Model
from .stage_readers import EMBEDDERS, MODELS, STEPS

log = logging.getLogger(__name__)

_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderTiny"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


def export(out: Path, target: Path) -> Path:
    """Writes the diffusion model as a diffusers folder and each trained reader as one file."""
    model = Model.of_run(out)
    networks: dict[str, Any] = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text}
    for name, network in networks.items():
        network.half().save_pretrained(target / name, safe_serialization=True)
    write_tokenizer(target / "tokenizer")
    schedule().save_pretrained(target / "scheduler")
    absent = {"safety_checker": (None, None), "feature_extractor": (None, None)}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    text = json.dumps(index | _CLASSES | absent, indent=2)
    (target / "model_index.json").write_text(text, encoding="utf-8")
    for name in STEPS:
        if (out / f"{name}.state.safetensors").exists():
            tensors = {k: v.half() for k, v in reader_tensors(out, name).items()}
            write_tensors(target / f"{name}.safetensors", tensors, {"network": name})
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    log.info("%s holds %.1f MB", target, size / 1e6)
    return target


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
