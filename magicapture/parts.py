"""Fused layers: one layer of a network for which files have several.

ComfyUI's joint-attention networks compute q, k and v (in Flux's single blocks the MLP as well) by
one linear layer whose W stacks the rows of theirs; diffusers, and with it LoRA files, has a layer
for each. A LoRA W + B A of the fused layer is W_i + B_i A of part i, B_i being the same rows of B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from .errors import InputError
from .lora import LoraWeights


@dataclass(frozen=True)
class Part:
    """A layer by its name in files, and the rows that it has of the network's layer; None: all."""

    name: str
    rows: slice | None = None


Parts: TypeAlias = Mapping[str, Sequence[Part]]
"""The parts of each layer by the layer's own name: one whole part, or some of rows."""


def names_of(parts: Parts) -> dict[str, list[str]]:
    """What files call each layer's parts, by the layer's own name."""
    return {name: [part.name for part in of] for name, of in parts.items()}


def split(weights: LoraWeights, parts: Sequence[Part]) -> dict[str, LoraWeights]:
    """A layer's LoRA as the parts' LoRAs by name, with its down (r,in), its alpha and their rows.

    One whole part takes it as it is. Raises InputError where the LoRA changes a row that no part
    has.
    """
    lost = weights.up.any(1)
    for part in parts:
        lost[_rows(part)] = False
    if lost.any():
        raise InputError(
            f"The LoRA changes {int(lost.sum())} rows of a layer that LoRA files have no name for "
            f"(the first is {int(lost.int().argmax())}); they have {_listed(parts)}."
        )
    return {part.name: replace(weights, up=weights.up[_rows(part)]) for part in parts}


def merge(found: Mapping[str, LoraWeights], parts: Sequence[Part], rows: int) -> LoraWeights:
    """One LoRA for a layer of so many rows from at least one of its parts'; undoes `split`.

    Rows of parts that are not in `found` stay zero. Parts of one down and alpha, as `split` makes
    them, keep their rank; else the downs are stacked and the ups lie block by block, so that the
    rank is the sum, with (alpha / r) multiplied into up. Raises InputError for another size.
    """
    present = [part for part in parts if part.name in found]
    first = found[present[0].name]
    if present[0].rows is None:
        return first
    for part in present:
        _check_fits(part, found[part.name], first.down.shape[1], rows)
    if all(_alike(found[part.name], first) for part in present):
        up = first.up.new_zeros(rows, first.rank)
        for part in present:
            up[_rows(part)] = found[part.name].up
        return replace(first, up=up)
    return _stacked([(_rows(part), scaled(found[part.name])) for part in present], rows)


def scaled(weights: LoraWeights) -> LoraWeights:
    """The same update with alpha = rank, for files that hold no alpha."""
    factor = weights.alpha / weights.rank
    return LoraWeights(weights.down, weights.up * factor, float(weights.rank))


def _stacked(blocks: Sequence[tuple[slice, LoraWeights]], rows: int) -> LoraWeights:
    """[A_1; A_2; ...] and the block matrix of the B_i."""
    down = torch.cat([weights.down for _, weights in blocks])
    up = down.new_zeros(rows, len(down))
    start = 0
    for place, weights in blocks:
        up[place, start : start + weights.rank] = weights.up
        start += weights.rank
    return LoraWeights(down, up, float(len(down)))


def _check_fits(part: Part, weights: LoraWeights, columns: int, rows: int) -> None:
    expected = (len(range(rows)[_rows(part)]), columns)
    came = (len(weights.up), weights.down.shape[1])
    if came != expected:
        raise InputError(
            f"The LoRA of {part.name} is for a layer of size {came}; this base model's is "
            f"{expected}. It was made for another kind of base model."
        )


def _alike(one: LoraWeights, other: LoraWeights) -> bool:
    return one.alpha == other.alpha and torch.equal(one.down, other.down)


def _rows(part: Part) -> slice:
    return slice(None) if part.rows is None else part.rows


def _listed(parts: Sequence[Part]) -> str:
    return ", ".join(
        part.name if part.rows is None else f"{part.name} ({part.rows.start}:{part.rows.stop})"
        for part in parts
    )
