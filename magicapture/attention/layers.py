"""The attention layers of a UNet by name, diffusers' or ComfyUI's, with or without a LoRA."""

from __future__ import annotations

from torch import nn

_MIDDLE = {"mid_block", "middle_block"}  # diffusers' name and ComfyUI's


def cross_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The cross-attention layers by name."""
    return _attentions(unet, "attn2")


def self_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The self-attention layers by name."""
    return _attentions(unet, "attn1")


def last_blocks(unet: nn.Module, *, middle: bool = False) -> list[str]:
    """Names of the last transformer block of every stack, those of the middle block if asked for.

    Its layers are `attn1` and `attn2` below that name. One block shows what its stack attends to;
    Stable Diffusion 1.x and 2.x have no other, XL's stacks have up to ten.
    """
    blocks = [name.removesuffix(".attn2") for name in cross_attentions(unet)]
    kept = [block for block in blocks if middle or not _MIDDLE & set(block.split("."))]
    return list({block.rpartition(".")[0]: block for block in kept}.values())


def select(unet: nn.Module, *, middle: bool = False) -> list[str]:
    """Names of the cross-attention layers to look at: those of `last_blocks`."""
    return [f"{block}.attn2" for block in last_blocks(unet, middle=middle)]


def _attentions(unet: nn.Module, suffix: str) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in unet.named_modules()
        if name.split(".")[-1] == suffix
        and all(hasattr(module, part) for part in ("to_q", "to_k", "heads"))
    }
