"""Which self-attention sees the references, chosen by the UNet's structure, not by number."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..attention import self_attentions
from ..errors import UnsupportedModelError

_DECODERS = {"up_blocks", "output_blocks"}  # diffusers' name and ComfyUI's
_LEVELS = 2


def decoder_layers(unet: nn.Module) -> list[str]:
    """Names of the self-attentions of the last two levels of the decoder that have any.

    These are six in Stable Diffusion 1.x and 2.x, at 1/2 and at the whole of the latents' size,
    and all 36 of SDXL's decoder, at 1/4 and 1/2. Raises UnsupportedModelError where there is none.
    """
    layers = self_attentions(unet)
    levels = [names for names in _levels(unet, set(layers)) if names]
    names = [name for level in levels[-_LEVELS:] for name in level]
    if not names:
        raise UnsupportedModelError(
            f"{type(unet).__name__} has no self-attention in its decoder ('up_blocks' or "
            "'output_blocks' with attn1). Use a Stable Diffusion 1.x, 2.x or XL model."
        )
    return names


def _levels(unet: nn.Module, wanted: set[str]) -> Iterator[list[str]]:
    """The decoder's attentions by level; an upsampler ends each level but the last."""
    level: list[str] = []
    for name, module in unet.named_modules():
        if name.split(".")[0] not in _DECODERS:
            continue
        if name in wanted:
            level.append(name)
        elif type(module).__name__ in ("Upsample", "Upsample2D"):
            yield level
            level = []
    yield level
