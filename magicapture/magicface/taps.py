"""Hooks on attention layers: what they project, and a change of what they put out.

They fit diffusers' UNet and ComfyUI's alike, whatever kernel computes the attention itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

Found = dict[str, dict[str, Tensor]]
"""Layer -> "to_q", "to_k" or "to_v" -> what that projection gave, (B,N,heads*d)."""


@contextmanager
def recorded(layers: Mapping[str, nn.Module], *projections: str) -> Iterator[Found]:
    """Record what projections give in the passes run inside; a later pass replaces an earlier."""
    found: Found = {name: {} for name in layers}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            for projection in projections:
                keep = partial(_keep, found[name], projection)
                handle = layer.get_submodule(projection).register_forward_hook(keep)
                hooks.callback(handle.remove)
        yield found


@contextmanager
def edited(
    layers: Mapping[str, nn.Module], edit: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Change what layers attend to: `edit(name, attention)` gets what enters `to_out`.

    attention: (B,N,heads*d), the heads side by side, not yet projected.
    """
    with ExitStack() as hooks:
        for name, layer in layers.items():
            change = partial(_change, edit, name)
            handle = layer.get_submodule("to_out.0").register_forward_pre_hook(change)
            hooks.callback(handle.remove)
        yield


def _keep(found: dict[str, Tensor], name: str, module: nn.Module, args: Any, out: Tensor) -> None:
    found[name] = out


def _change(
    edit: Callable[[str, Tensor], Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return (edit(name, args[0]), *args[1:])
