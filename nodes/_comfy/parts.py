"""Which of diffusers' layers each layer of ComfyUI's networks is, rows included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeAlias

import comfy.model_base
import comfy.utils
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...magicapture.parts import Part, Parts

Table: TypeAlias = Mapping[str, str | tuple[Any, ...]]
"""ComfyUI's table of a network: diffusers' name of a weight -> its own, or one of

(own name, (axis, first row, number of rows)) and (own name, None, how to change the weight).
"""

_WEIGHT = ".weight"

# Newer ComfyUIs know more families.
_TABLES = {
    "SD3": "mmdit_to_diffusers",
    "Flux": "flux_to_diffusers",
    "Lumina2": "z_image_to_diffusers",
    "Krea2": "krea2_to_diffusers",
}


def network_parts(model: ModelPatcher) -> Parts:
    """The parts of each layer of a MODEL's network, by diffusers' names.

    A UNet's blocks have names as well. A network that ComfyUI has no table for calls its layers as
    diffusers does, or has names of its own in every file.
    """
    network, config = model.model.diffusion_model, model.model.model_config.unet_config
    names = own_names(network)
    if isinstance(network, UNetModel):
        found = _unet_parts(comfy.utils.unet_to_diffusers(config))
    else:
        table = _table(model.model, config)
        found = {**names, **parts_in(table, latest=config.get("image_model") == "flux2")}
    # The tables also have what other models have, such as a class embedding.
    return {name: found[name] for name in names if name in found}


def own_names(module: nn.Module) -> dict[str, tuple[Part, ...]]:
    """Each submodule as one whole part by its own name."""
    return {name: (Part(name),) for name, _ in module.named_modules() if name}


def _table(network: Any, config: Mapping[str, Any]) -> Table:
    for kind, name in _TABLES.items():
        known = getattr(comfy.model_base, kind, None)
        if known is not None and isinstance(network, known) and hasattr(comfy.utils, name):
            table: Table = getattr(comfy.utils, name)(config)
            return table
    return {}


def parts_in(table: Table, latest: bool = False) -> dict[str, tuple[Part, ...]]:
    """The parts of each layer in a table of ComfyUI's, in order of their rows.

    Of several spellings of the same rows the table's first is taken; latest: the last, which is
    Flux.2's. A weight that is changed on the way (halves exchanged) is no part.
    """
    found: defaultdict[str, list[Part]] = defaultdict(list)
    for theirs, entry in reversed(table.items()) if latest else table.items():
        own, rows = (entry, None) if isinstance(entry, str) else _entry(entry)
        if own is None or not (own.endswith(_WEIGHT) and theirs.endswith(_WEIGHT)):
            continue
        part = Part(theirs.removesuffix(_WEIGHT), rows)
        layer = found[own.removesuffix(_WEIGHT)]
        if not any(_overlap(part, other) for other in layer):
            layer.append(part)
    return {own: tuple(sorted(layer, key=_first_row)) for own, layer in found.items()}


def _entry(entry: tuple[Any, ...]) -> tuple[str | None, slice | None]:
    """Own name and rows; no name for what a part cannot say."""
    own, place, *change = entry
    if change or place is None or place[0] != 0:
        return None, None
    return own, slice(place[1], place[1] + place[2])


def _overlap(one: Part, other: Part) -> bool:
    if one.rows is None or other.rows is None:
        return True
    return one.rows.start < other.rows.stop and other.rows.start < one.rows.stop


def _first_row(part: Part) -> int:
    return 0 if part.rows is None else int(part.rows.start)


def _unet_parts(table: Mapping[str, str]) -> dict[str, tuple[Part, ...]]:
    """A UNet's layers, and the modules above them where both names end alike."""
    names: dict[str, tuple[Part, ...]] = {}
    for theirs, own in table.items():
        path, other = own.split(".")[:-1], theirs.split(".")[:-1]
        while path and other:
            names[".".join(path)] = (Part(".".join(other)),)
            if path.pop() != other.pop():
                break
    return names
