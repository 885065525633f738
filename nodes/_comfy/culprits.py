"""Which other nodes have patched a MODEL, so that a sentence can name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

import nodes

from ...magicapture.attention import NotWholeError
from ...magicapture.errors import UnsupportedModelError
from .host import titled

SELF = ("attn1", "attn1_patch", "attn1_output_patch")
"""The kinds of patches that change a UNet's self-attention."""

_CROSS = ("attn2", "attn2_patch", "attn2_output_patch")
_JOINT = ("dit", "attn1_patch", "attn1_output_patch", "post_input")


def of_words(network: nn.Module) -> tuple[str, ...]:
    """The kinds of patches that change how a network attends to the prompt."""
    return _CROSS if isinstance(network, UNetModel) else _JOINT


def culprits(options: Mapping[str, Any], *kinds: str) -> str:
    """The titles of the nodes that have patches of some kinds, such as "attn1" and "attn1_patch".

    options: a sampler's transformer_options. "another node" where none of the kinds is patched; in
    joint attention that may be one of the conditioning's as well.
    """
    found: list[Any] = []
    for kind in kinds:
        found += options.get("patches", {}).get(kind, ())
        found += options.get("patches_replace", {}).get(kind, {}).values()
    other = "another node (ReferenceLatent, for one)" if kinds == _JOINT else "another node"
    return " and ".join(dict.fromkeys(map(_made_by, found))) or other


@contextmanager
def whole(
    title: str, options: Mapping[str, Any], kinds: Sequence[str], instead: str
) -> Iterator[None]:
    """Where a pass does not see whole pictures, one sentence says which node is to be left out.

    title: of our own node. kinds: of the patches that may be why. instead: what else helps.
    """
    try:
        yield
    except NotWholeError as error:
        names = culprits(options, *kinds)
        how = "merges, tiles or adds to" if kinds == _JOINT else "merges or tiles"
        told = f"{names} {how} the picture, where nothing can be held. {instead}"
        raise titled(UnsupportedModelError(told), title) from error


def _made_by(patch: Any) -> str:
    """The title of the node that a patch comes from, or the name of its module."""
    kind = patch if hasattr(patch, "__qualname__") else type(patch)
    module, name = kind.__module__, kind.__qualname__.partition(".")[0]
    for node, known in nodes.NODE_CLASS_MAPPINGS.items():
        if (known.__module__, known.__name__) == (module, name):
            return nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node, node)
    return module.replace("\\", "/").rpartition("/")[-1]
