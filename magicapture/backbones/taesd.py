"""TAESD, the tiny VAE over Stable Diffusion's latents, from its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, StorageError, UnsupportedModelError
from ..weight_files import read_tensors
from .building import build_vae
from .reading import read_json, read_part

_INDEX = re.compile(r"(\d+)\.(.+)")


def load_taesd(path: str | Path) -> nn.Module:
    """Load TAESD from a diffusers folder or from files in the author's and ComfyUI's layout.

    path: a folder with `config.json`, or with `taesd_encoder.safetensors` and
    `taesd_decoder.safetensors`, or one of these two files (also .pth); the other one lies beside
    it. Raises InputError when one is missing, UnsupportedModelError for another architecture.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        config = {**read_json(path / "config.json"), "_class_name": "AutoencoderTiny"}
        weights = read_part(path, "diffusion_pytorch_model")
        return build_vae(config, weights, torch.float32, path).eval().requires_grad_(False)
    found = {part: _file(path, part) for part in ("encoder", "decoder")}
    return taesd_from({part: read_tensors(file) for part, file in found.items()})


def taesd_from(parts: Mapping[str, Mapping[str, Tensor]]) -> nn.Module:
    """Build TAESD from the state dicts of its "encoder" and "decoder", in the author's layout."""
    # The author's decoder counts its clamp as layer 0; diffusers' clamps outside the layers.
    state = {
        **_renumbered(parts["encoder"], "encoder.layers", 0),
        **_renumbered(parts["decoder"], "decoder.layers", -1),
    }
    config: dict[str, Any] = {"_class_name": "AutoencoderTiny"}
    if (last := state.get("encoder.layers.14.bias")) is not None:
        config["latent_channels"] = len(last)
    try:
        model = build_vae(config, state, torch.float32, Path("TAESD"))
    except (StorageError, UnsupportedModelError) as error:
        raise UnsupportedModelError(
            f"The tiny VAE is not laid out as TAESD (four levels of 64 channels): {error}"
        ) from error
    return model.eval().requires_grad_(False)


def _file(path: Path, part: str) -> Path:
    """The file of one half, from a folder or from the path of either half."""
    if path.is_file():
        other = "decoder" if part == "encoder" else "encoder"
        file = path.with_name(path.name.replace(other, part))
    else:
        candidates = (path / f"taesd_{part}{suffix}" for suffix in (".safetensors", ".pth"))
        file = next((c for c in candidates if c.is_file()), path / f"taesd_{part}.safetensors")
    if not file.is_file() or part not in file.name:
        raise InputError(
            f"{path} is no TAESD: expected a diffusers folder, or taesd_encoder.safetensors and "
            f"taesd_decoder.safetensors beside each other; the {part} is missing."
        )
    return file


def _renumbered(state: Mapping[str, Tensor], prefix: str, offset: int) -> dict[str, Tensor]:
    names = {key: _INDEX.fullmatch(key) for key in state}
    return {
        f"{prefix}.{int(match[1]) + offset}.{match[2]}": state[key].float()
        for key, match in names.items()
        if match
    }
