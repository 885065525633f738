"""DINO, where the user has it: what a vision transformer sees in pictures, patch by patch.

One network whatever the file: the weights of torch hub's DINO and DINOv2 and those of transformers
differ in names alone, and transformers' own class runs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones.reading import read_json, read_part
from .errors import InputError
from .faces.dinos import plain
from .faces.embed import NORMALISATIONS
from .faces.weights import filled, read_weights

SIDE = 224
"""Pixels a side that DINO was trained on; larger models are shown no more."""

_HEAD = 64  # width of an attention head in every DINO that is published
_UNUSED = ("mask_token", "pooler.", "head", "classifier")
"""Weights that only pretraining or a classifier has."""


class Seen(NamedTuple):
    """[CLS] of the last layer (B,D), and the keys of its patches (B,N,D), row by row."""

    look: Tensor
    keys: Tensor


class Dino(nn.Module):
    """A DINO network, frozen; gradients flow through it to the pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        config: Any = network.config
        colours = NORMALISATIONS["imagenet"]
        self.register_buffer("mean", torch.tensor(colours.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(colours.std).view(3, 1, 1))
        self.network, self.patch = network, int(config.patch_size)
        self.side = min(SIDE, int(config.image_size)) // self.patch * self.patch
        last = f"block.{config.num_hidden_layers - 1}.k.weight"
        self._key = next(n for n, _ in network.named_modules() if plain(f"{n}.weight") == last)
        self._interpolates = config.model_type == "vit" and self.side != config.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along a picture's height and width."""
        return self.side // self.patch, self.side // self.patch

    def forward(self, images: Tensor) -> Seen:
        """What is seen in square pictures (B,3,S,S) in 0..1 of any side."""
        size = (self.side, self.side)
        sized = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        more = {"interpolate_pos_encoding": True} if self._interpolates else {}
        with self._recorded() as keys, torch.autocast(images.device.type, enabled=False):
            states = self.network((sized - self.mean) / self.std, **more).last_hidden_state
        return Seen(states[:, 0], keys[0][:, 1:])

    @contextmanager
    def _recorded(self) -> Iterator[list[Tensor]]:
        """The keys of the last layer, of all its heads side by side (B,1+N,D)."""
        found: list[Tensor] = []
        layer = self.network.get_submodule(self._key)
        hook = layer.register_forward_hook(lambda layer, given, keys: found.append(keys))
        try:
            yield found
        finally:
            hook.remove()


def load_dino(path: str | Path) -> Dino:
    """The DINO or DINOv2 of a file, torch hub's or transformers', or of transformers' folder.

    Raises StorageError for what is missing or damaged, InputError for another network.
    """
    path = Path(path)
    with torch.inference_mode(False):  # tensors made in it could never take part in a gradient
        weights = _one_by_one(read_part(path, "model") if path.is_dir() else read_weights(path))
        network = _network(weights, _told(path), path)
        own = {plain(name): name for name in network.state_dict()}
        named = {own.get(name, name): value for name, value in weights.items()}
        for name in own.keys() & {"mask_token"}:  # only pretraining reads it
            named[own[name]] = network.state_dict()[own[name]]
        return Dino(filled(network, named, path.name))


def _one_by_one(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their plain names, with q, k and v apart and without what is not used."""
    found = {}
    for name, value in weights.items():
        if ".attn.qkv." in name and len(value) % 3 == 0:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                found[plain(name.replace(".qkv.", f".{part}."))] = third
        else:
            found[plain(name)] = value
    return {name: value for name, value in found.items() if not name.startswith(_UNUSED)}


def _told(path: Path) -> dict[str, Any]:
    """What shapes do not tell, from transformers' config beside the weights if there is one."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    told = read_json(file) if path.is_dir() or file.is_file() else {}
    return {key: told[key] for key in ("num_attention_heads", "layer_norm_eps") if key in told}


def _network(weights: Mapping[str, Tensor], told: Mapping[str, Any], path: Path) -> nn.Module:
    """transformers' network of the shape that the weights tell."""
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    try:
        width, _, patch, _ = weights["patch.weight"].shape
        layers = {int(n.split(".")[1]) for n in weights if n.startswith("block.")}
        shape: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": max(layers) + 1,
            "num_attention_heads": max(1, width // _HEAD),
            "patch_size": patch,
            "image_size": patch * math.isqrt(weights["position"].shape[1] - 1),
            "layer_norm_eps": 1e-6,
            **told,
        }
        if "block.0.scale1" in weights:
            shape["mlp_ratio"] = len(weights["block.0.up.weight"]) // width
            return Dinov2Model(Dinov2Config(**shape))
        shape["intermediate_size"] = len(weights["block.0.up.weight"])
        return ViTModel(ViTConfig(**shape), add_pooling_layer=False)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"{path.name} does not hold a DINO (no {error}); expected the weights of torch hub's "
            "dino_vitb8 or dinov2_vitb14, say, or of transformers' ViTModel or Dinov2Model."
        ) from error
