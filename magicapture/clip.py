"""CLIP, where the user has it: how alike pictures are off their faces, and whether words show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbones.clip_tokenizer import write_tokenizer
from .backbones.reading import read_json, read_part, read_tokenizer
from .digests import digest
from .errors import InputError, StorageError
from .images import resize
from .memory import refuse_large
from .weight_files import SAFETENSORS, difference, ending, read_tensors

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that OpenAI's and OpenCLIP's models were trained on."""

_VISION, _TEXT, _PROJECTION = "vision_model.", "text_model.", "text_projection.weight"
_HEADS = {1280: 16, 1408: 16, 1664: 16}  # ViT-H, g and bigG; the others have one for each 64
_GELU, _GELU_TEXT = 1280, 1024  # from these widths on; OpenAI's are smaller and have the quick one


class PictureEncoder(Protocol):
    """Anything that embeds pictures; alike ones have a high cosine."""

    def of_images(self, images: Tensor, /) -> Tensor:
        """Unit embeddings (N,D) of pictures (N,3,H,W) in 0..1."""


class TextEncoder(Protocol):
    """Anything that embeds texts where a `PictureEncoder` embeds pictures."""

    def of_text(self, text: str, /) -> Tensor:
        """The unit embedding (1,D) of a text."""


class Clip:
    """A CLIP model as transformers has it, with its tokenizer; without one it has no texts."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        config = model.config
        self.side: int = getattr(config, "vision_config", config).image_size

    @property
    def digest(self) -> str:
        """A hash of its weights."""
        return digest(self.model)[:24]

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (N,D) of the central squares of pictures (N,3,H,W) in 0..1."""
        pixels = torch.stack([_square(image, self.side) for image in images.cpu()])
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        given = {"pixel_values": ((pixels - mean) / std).to(self.model.device)}
        if hasattr(self.model, "get_image_features"):
            return self._unit(self.model.get_image_features(**given))
        return self._unit(self.model(**given).image_embeds)

    @torch.no_grad()
    def of_text(self, text: str) -> Tensor:
        """The unit embedding (1,D) of a text."""
        given = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        return self._unit(self.model.get_text_features(**given.to(self.model.device)))

    def _unit(self, found: Any) -> Tensor:
        vectors = found if isinstance(found, Tensor) else found.pooler_output  # transformers 5
        return F.normalize(vectors.float(), dim=-1)


class ClipText:
    """The text half of a CLIP model, with its projection; fits `TextEncoder`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def of_text(self, text: str) -> Tensor:
        """The unit embedding (1,D) of a text."""
        given = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.model(**given).text_embeds.float(), dim=-1)


def _square(image: Tensor, side: int) -> Tensor:
    """A picture (3,H,W) as CLIP is shown it: its short side scaled, its middle cut out."""
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    sized = resize(image, (max(side, round(height * scale)), max(side, round(width * scale))))
    top, left = (sized.shape[-2] - side) // 2, (sized.shape[-1] - side) // 2
    return sized[:, top : top + side, left : left + side].clamp(0, 1)


def load_clip(path: Path) -> Clip:
    """The CLIP model of a transformers folder, or of one .safetensors file in its names.

    A whole CLIPModel, or a CLIPVisionModelWithProjection, which has no texts. Of a file the shape
    is read off its weights, and the tokenizer is CLIP's. Raises StorageError for what is missing
    or damaged, InputError for another model.
    """
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise StorageError(
                f"--clip: {path} is no folder of a CLIP model; expected config.json, "
                "model.safetensors and a tokenizer in it, such as openai/clip-vit-large-patch14's."
            )
        config, weights = read_json(path / "config.json"), read_part(path, "model")
    elif ending(path) != SAFETENSORS:
        raise InputError(
            f"--clip: {path} is no folder, and no {SAFETENSORS} file; expected one of them."
        )
    else:
        weights = read_tensors(path)
        config = _config(weights, path)
    model = _model(config, weights, path)
    return Clip(model, _tokenizer(path) if hasattr(model, "get_text_features") else None)


def load_clip_text(path: Path) -> ClipText:
    """The text half of one .safetensors file in transformers' names, a whole CLIPModel's as well.

    Raises StorageError for a file that is missing or damaged, InputError for another, and for one
    without the projection that leads to where pictures are, as a diffusion model's own have none.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    weights = {
        key: value
        for key, value in read_tensors(path).items()
        if key.startswith((_TEXT, _PROJECTION)) and not key.endswith("position_ids")
    }
    if _PROJECTION not in weights:
        raise InputError(
            f"{path} has no {_PROJECTION}, so its texts cannot be compared with pictures; expected "
            "a whole CLIP model, such as openai/clip-vit-large-patch14's, or its text half."
        )
    with _told(path):
        config = _text_config(weights)
    wide = config["hidden_size"] >= _GELU_TEXT
    act = {"hidden_act": "gelu" if wide else "quick_gelu"}
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config, **act))
    return ClipText(_filled(model, weights, path), _tokenizer(path))


def _tokenizer(path: Path) -> Any:
    if path.is_dir():
        return read_tokenizer(path)
    with TemporaryDirectory(prefix="magicapture-") as folder:
        write_tokenizer(Path(folder))
        return read_tokenizer(Path(folder))


def _model(config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> Any:
    """The network of a config with these weights, none left at random, frozen, in float32."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    kinds: dict[str, tuple[Any, Any]] = {
        "clip": (CLIPModel, CLIPConfig),
        "clip_vision_model": (CLIPVisionModelWithProjection, CLIPVisionConfig),
    }
    if (kind := config.get("model_type")) not in kinds:
        raise InputError(
            f"--clip: {path} is of type {kind!r}; expected a CLIPModel or a "
            "CLIPVisionModelWithProjection."
        )
    network, settings = kinds[kind]
    try:
        model = network(settings(**config))
    except Exception as error:  # of many kinds, for values that make no network
        refuse_large(path, error)
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"--clip: {path} cannot be read as a CLIP model ({reason}).") from error
    own = {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    return _filled(model, own, path)


def _filled(model: Any, weights: Mapping[str, Tensor], path: Path) -> Any:
    if wrong := difference(model, weights):
        raise InputError(f"--clip: {path} cannot be read as a CLIP model: it {wrong}.")
    model.load_state_dict(weights)
    return model.float().eval().requires_grad_(False)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what a file is not whose weights lack a name, or have shapes of another network."""
    try:
        yield
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"--clip: {path} does not hold a CLIP model in transformers' names (no {error}); "
            "expected a CLIPModel or a CLIPVisionModelWithProjection."
        ) from error


def _config(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The config of a model from the shapes of its weights."""
    with _told(path):
        vision = _shape(weights, _VISION, "visual_projection.weight")
        patches = weights[f"{_VISION}embeddings.position_embedding.weight"].shape[0] - 1
        patch = weights[f"{_VISION}embeddings.patch_embedding.weight"].shape[-1]
        vision |= {"patch_size": patch, "image_size": patch * math.isqrt(patches)}
        act = {"hidden_act": "gelu" if vision["hidden_size"] >= _GELU else "quick_gelu"}
        if not any(key.startswith(_TEXT) for key in weights):
            return {**vision, **act, "model_type": "clip_vision_model"}
        return {
            "model_type": "clip",
            "projection_dim": vision["projection_dim"],
            "vision_config": vision | act,
            "text_config": _text_config(weights) | act,
        }


def _text_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    words, _ = weights[f"{_TEXT}embeddings.token_embedding.weight"].shape
    length, _ = weights[f"{_TEXT}embeddings.position_embedding.weight"].shape
    ids = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    own = {"vocab_size": words, "max_position_embeddings": length}
    return _shape(weights, _TEXT, _PROJECTION) | ids | own


def _shape(weights: Mapping[str, Tensor], part: str, projection: str) -> dict[str, int]:
    """What both halves have: widths, layers, heads."""
    layers = {int(key.split(".")[3]) for key in weights if key.startswith(f"{part}encoder.layers.")}
    inner, width = weights[f"{part}encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": _HEADS.get(width, max(1, width // 64)),
        "projection_dim": weights[projection].shape[0],
    }
