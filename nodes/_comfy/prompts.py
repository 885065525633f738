"""Prompts by ComfyUI's CLIP: encoded, and where a word's vectors stand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import node_helpers
import torch
from torch import Tensor

from ...magicapture.magicface import Reference, concept_columns
from ...magicapture.prompts import with_edit
from .models import ENCODERS

WITHOUT_EXTRA = "magicapture_without_extra"
"""The option of a CONDITIONING's part whose words stand in another part, with more behind them."""


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


def encode_extra(encode: Callable[[str], Any], text: str, extra: str, strength: float) -> Any:
    """CONDITIONING of a text with extra words behind it that have a strength of their own.

    encode: makes CONDITIONING of a text. strength: 0 is the text alone, 1 the text with the words.

    A sampler averages the parts of a CONDITIONING by their strengths, which may be below 0 and here
    add up to 1: e = (1 - s) e_text + s e_extra. With e_0 of the negative prompt, CFG makes of that
    e_0 + cfg (e_text - e_0) + s cfg (e_extra - e_text), the core's edit guidance, whatever sampler,
    model and patches there are, in one pass of the UNet.
    """
    whole = with_edit(text, extra)
    if whole == text or strength == 0:
        return encode(text)
    if strength == 1:
        return encode(whole)
    without = {"strength": 1 - strength, WITHOUT_EXTRA: True}
    return [
        *node_helpers.conditioning_set_values(encode(text), without),
        *node_helpers.conditioning_set_values(encode(whole), {"strength": strength}),
    ]


def text_length(clip: Any, text: str) -> int:
    """How many columns of the context a text fills, up to its last word.

    What stands in them stays as it is with more words behind the text: each word sees those before
    it alone.
    """
    chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
    line = [token[2] for chunk in chunks for token in chunk]
    return max(column for column, word in enumerate(line) if word > 0 or column == 0) + 1


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
