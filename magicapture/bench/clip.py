"""CLIP, where the user has it: a second measure of style, and whether words show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..digests import digest
from ..errors import InputError, StorageError
from ..images import resize
from ..memory import refuse_large

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that OpenAI's and OpenCLIP's models were trained on."""


class Clip:
    """A CLIP model with its tokenizer, as transformers has them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.side: int = model.config.vision_config.image_size

    @property
    def digest(self) -> str:
        """A hash of its weights."""
        return digest(self.model)[:24]

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (N,D) of pictures (N,3,H,W) in 0..1, whole and square."""
        pixels = torch.stack(
            [resize(image, (self.side, self.side)).clamp(0, 1) for image in images]
        )
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        return self._unit(self.model.get_image_features(pixel_values=(pixels - mean) / std))

    @torch.no_grad()
    def of_text(self, text: str) -> Tensor:
        """The unit embedding (1,D) of a text."""
        given = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        return self._unit(self.model.get_text_features(**given))

    def _unit(self, found: Any) -> Tensor:
        vectors = found if isinstance(found, Tensor) else found.pooler_output  # transformers 5
        return F.normalize(vectors.float(), dim=-1)


def load_clip(folder: Path) -> Clip:
    """The CLIP model of a transformers folder; raises StorageError or InputError for another."""
    if not (folder / "config.json").is_file():
        raise StorageError(
            f"--clip: {folder} is no folder of a CLIP model; expected config.json, "
            "model.safetensors and a tokenizer in it, such as openai/clip-vit-large-patch14's."
        )
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds, for what is no CLIP model
        refuse_large(folder, error)
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"--clip: {folder} cannot be read as a CLIP model ({reason}).") from error
    return Clip(model.eval().requires_grad_(False), tokenizer)
