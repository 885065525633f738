"""The attention layers of a network by name, diffusers' or ComfyUI's, with or without a LoRA.

In a transformer of joint attention (Flux, Z-Image and others) each layer is both cross- and
self-attention.
ComfyUI's Flux has no layer of its own around it: there the block is the layer.
"""

from __future__ import annotations

import re

from torch import nn

_MIDDLE = {"mid_block", "middle_block"}  # diffusers' name and ComfyUI's
_OF_WORDS = ("add_k_proj", "txt_attn")
"""The words' own projection, in blocks that keep words and picture apart; ComfyUI's is fused."""
_BLOCKS = {"double_blocks": ("img_attn", "txt_attn"), "single_blocks": ("linear1", "linear2")}
"""ComfyUI's blocks around one joint attention, by their stack's name, and what they have."""
_STACKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
_STACKS |= {"blocks": "double_blocks"}
"""Diffusers' names of the stacks, and the model's own, which ComfyUI keeps; Krea 2's blocks are
named as others' first ones, since diffusers calls them so."""
_PROJECTIONS = (("to_q", "to_k", "heads"), ("to_qkv_mlp_proj", "heads"))
"""What diffusers' layers have; one of Flux.2's single blocks has all its projections in one."""
_IN_ONE = re.compile(r"layers\.\d+\.attention|(transformer_)?blocks\.\d+\.attn")
_QUERIES = ("to_q", "qkv", "wq")
"""Layers in which words and picture are one row, Z-Image's and Krea 2's; those of their refiners,
which see only one of both, have longer names."""


def cross_attentions(network: nn.Module) -> dict[str, nn.Module]:
    """The layers by which the picture reads the prompt, by name."""
    return _attentions(network, "attn2") or joint_attentions(network)


def self_attentions(network: nn.Module) -> dict[str, nn.Module]:
    """The layers by which the picture's cells read each other, by name."""
    return _attentions(network, "attn1") or joint_attentions(network)


def joint_attentions(network: nn.Module) -> dict[str, nn.Module]:
    """The layers in which words and picture attend to both, by name."""
    return _attentions(network, "attn") or {
        name: module
        for name, module in network.named_modules()
        if (_IN_ONE.fullmatch(name) and any(hasattr(module, part) for part in _QUERIES))
        or (
            (parts := _BLOCKS.get(name.rpartition(".")[0]))
            and all(hasattr(module, part) for part in parts)
        )
    }


def block_of(site: str) -> str:
    """The name of the block of a layer of joint attention, the same whatever the host.

    What diffusers calls transformer_blocks.0.attn is double_blocks.0, as in ComfyUI. Z-Image's
    layers.0.attention is layers.0.
    """
    stack, _, rest = site.removesuffix(".attn").removesuffix(".attention").partition(".")
    return f"{_STACKS.get(stack, stack)}.{rest}"


def blocks(network: nn.Module) -> dict[str, str]:
    """The layers of joint attention by the names of their blocks; none in a UNet."""
    return {block_of(site): site for site in joint_attentions(network)}


def last_blocks(network: nn.Module, *, middle: bool = False) -> list[str]:
    """Names of the last transformer block of every stack, those of the middle block if asked for.

    Its layers are `attn1` and `attn2` below that name. One block shows what its stack attends to;
    Stable Diffusion 1.x and 2.x have no other, XL's stacks have up to ten. There are none in a
    transformer of joint attention.
    """
    blocks = [name.removesuffix(".attn2") for name in _attentions(network, "attn2")]
    kept = [block for block in blocks if middle or not _MIDDLE & set(block.split("."))]
    return list({block.rpartition(".")[0]: block for block in kept}.values())


def select(network: nn.Module, *, middle: bool = False) -> list[str]:
    """Names of the layers to look at for the prompt: those of `last_blocks`.

    In joint attention those of the blocks that keep words and picture apart (Flux's first, double
    ones), where a prompt's columns still hold its words; where none do (Z-Image) or all
    (Qwen-Image), those between half and two thirds of the depth.
    """
    if blocks := last_blocks(network, middle=middle):
        return [f"{block}.attn2" for block in blocks]
    layers = joint_attentions(network)
    apart = [n for n, of in layers.items() if any(getattr(of, part, None) for part in _OF_WORDS)]
    half = len(layers) // 2
    middle_ones = list(layers)[half : max(half + 1, 2 * len(layers) // 3)]
    return apart if 0 < len(apart) < len(layers) else middle_ones


def select_own(network: nn.Module) -> list[str]:
    """Names of the layers to look at for what the picture's cells have to do with each other."""
    own = self_attentions(network)
    blocks = last_blocks(network)
    return [name for block in blocks if (name := f"{block}.attn1") in own] or (
        [] if blocks else select(network)
    )


def _attentions(network: nn.Module, suffix: str) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in network.named_modules()
        if name.split(".")[-1] == suffix
        and any(all(hasattr(module, part) for part in parts) for parts in _PROJECTIONS)
    }
