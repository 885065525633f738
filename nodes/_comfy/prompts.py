"""Prompts by ComfyUI's CLIP: encoded, and where a word's vectors stand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magicapture.magicface import Reference, concept_columns
from .models import ENCODERS


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt as CONDITIONING holds it; `conditioning` is that. context: (1,L,D)."""

    conditioning: Any

    @property
    def context(self) -> Tensor:
        return self.conditioning[0][0]

    def model_conds(self, model: Any, latents: Tensor, device: torch.device) -> dict[str, Any]:
        """What a model is told about this prompt and latents (1,C,h,w), as samplers make it."""
        context, extra = self.conditioning[0]
        # The size is in latent cells of 8 pixels, which is how samplers count it as well.
        height, width = (8 * cells for cells in latents.shape[-2:])
        conds = model.extra_conds(
            **extra,
            cross_attn=context,
            noise=latents,
            device=device,
            width=width,
            height=height,
            prompt_type="positive",
        )
        return {
            name: cond.process_cond(batch_size=1, device=device, area=None)
            for name, cond in conds.items()
        }


def encode_prompt(clip: Any, text: str) -> Encoded:
    """What CLIPTextEncode makes of a text."""
    return Encoded(clip.encode_from_tokens_scheduled(clip.tokenize(text)))


def word_columns(
    clip: Any, references: Sequence[Reference], prompt: str, encoded: Encoded
) -> list[list[int]]:
    """The columns of the context that each concept's words take up in a prompt.

    Raises InputError for a word that the prompt lacks. SDXL's two text encoders have the same
    columns.
    """
    name = next(name for name in ENCODERS if hasattr(clip.tokenizer, name))
    tokenizer = getattr(clip.tokenizer, name)
    special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}

    def flat(text: str) -> list[Hashable]:
        chunks = next(v for k, v in clip.tokenize(text).items() if f"clip_{k}" == name)
        return [_hashable(token[0]) for chunk in chunks for token in chunk]

    def ids(text: str) -> list[Hashable]:
        return [token for token in flat(text) if token not in special]

    return concept_columns(references, flat(prompt)[1:], ids, encoded.context.shape[1])


def _hashable(token: Any) -> Hashable:
    """An id as it is; an embedding's vector by its values."""
    return tuple(token.flatten().tolist()) if isinstance(token, Tensor) else token
