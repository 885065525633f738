"""Which other nodes have patched a MODEL, so that a sentence can name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import nodes

from ...magicapture.attention import NotWholeError
from ...magicapture.errors import UnsupportedModelError
from .host import titled


def culprits(options: Mapping[str, Any], *kinds: str) -> str:
    """The titles of the nodes that have patches of some kinds, such as "attn1" and "attn1_patch".

    options: a sampler's transformer_options. "another node" where none of the kinds is patched.
    """
    found: list[Any] = []
    for kind in kinds:
        found += options.get("patches", {}).get(kind, ())
        found += options.get("patches_replace", {}).get(kind, {}).values()
    return " and ".join(dict.fromkeys(map(_made_by, found))) or "another node"


@contextmanager
def whole(title: str, options: Mapping[str, Any], layer: str, instead: str) -> Iterator[None]:
    """Where a pass does not see whole pictures, one sentence says which node is to be left out.

    title: of our own node. layer: "attn1" or "attn2", which is patched. instead: what else helps.
    """
    try:
        yield
    except NotWholeError as error:
        names = culprits(options, layer, f"{layer}_patch", f"{layer}_output_patch")
        told = f"{names} merges or tiles the picture, where nothing can be held. {instead}"
        raise titled(UnsupportedModelError(told), title) from error


def _made_by(patch: Any) -> str:
    """The title of the node that a patch comes from, or the name of its module."""
    kind = patch if hasattr(patch, "__qualname__") else type(patch)
    module, name = kind.__module__, kind.__qualname__.partition(".")[0]
    for node, known in nodes.NODE_CLASS_MAPPINGS.items():
        if (known.__module__, known.__name__) == (module, name):
            return nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node, node)
    return module.replace("\\", "/").rpartition("/")[-1]
