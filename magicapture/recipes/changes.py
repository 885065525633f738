"""Changes to a recipe: any field by its path, and steps, rates and weights as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..config import Phase, Rates, Recipe, from_dict, to_dict
from ..errors import InputError
from ..families import FAMILIES, FamilyName
from ..older import is_older
from ..settings import from_json, refuse_unknown
from ..tokens import Concept

_PART = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d{1,6}|\*)\]")
_EVERYWHERE = ("source", "style", "token_norm")
"""Losses that belong to every phase; others to those that train the LoRA."""


def parse_changes(lines: Iterable[str]) -> dict[str, Any]:
    """Changes by path from lines of the form PATH=VALUE; empty lines and those with # are skipped.

    A value is JSON, or else a text. Raises InputError for a line without "=".
    """
    changes = {}
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        path, equals, value = (part.strip() for part in text.partition("="))
        if not (path and equals):
            raise InputError(f"Expected PATH=VALUE, such as lora.rank=16, got {text[:80]!r}.")
        try:
            changes[path] = from_json(value)
        except InputError:
            changes[path] = value
    return changes


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values at some paths, such as {"lora.rank": 16}.

    phases[*] stands for every phase; an object changes the settings that it names. Raises
    InputError for a path that leads nowhere, and as `Recipe` for a value.
    """
    data = to_dict(recipe)
    for path, value in changes.items():
        for holder, key in _places(data, path):
            old = holder[key] if isinstance(holder, list) else holder.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            holder[key] = {**old, **value} if both else value
    return from_dict(Recipe, data)


def _places(data: Any, path: str) -> list[tuple[Any, Any]]:
    """The objects and lists that a path ends in, each with the key or index there."""
    parts = [match[1] or match[2] for match in _PART.finditer(path)]
    if not parts or _PART.sub("", path) or path.startswith((".", "[")):
        raise InputError(
            f"{path[:80]!r} is no path of a setting; expected one such as lora.rank or "
            "phases[1].weights.identity."
        )
    holders: list[tuple[Any, str]] = [(data, "")]
    for part in parts[:-1]:
        holders = [
            (holder[key], f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}")
            for holder, where in holders
            for key in _keys(holder, part, where)
        ]
    return [(holder, key) for holder, where in holders for key in _keys(holder, parts[-1], where)]


def _keys(holder: Any, part: str, where: str) -> Iterator[Any]:
    """The keys or indices in an object or a list that one part of a path stands for."""
    where = where.removeprefix(".")
    if isinstance(holder, dict):
        if is_older(where, part):  # `Recipe` reads it as what it is today
            yield part
            return
        refuse_unknown([part], holder, where)
        yield part
    elif isinstance(holder, list) and part == "*":
        yield from range(len(holder))
    elif isinstance(holder, list) and part.isdecimal():
        if int(part) >= len(holder):
            raise InputError(
                f"{where}[{part}]: there is none; expected 0 to {len(holder) - 1}."
                if holder
                else f"{where}[{part}]: the list is empty."
            )
        yield int(part)
    elif isinstance(holder, list):
        raise InputError(f"{where} is a list; write {where}[0] for its first, {where}[*] for all.")
    else:
        raise InputError(f"{where}: there is no {part!r} in it.")


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with its phases stretched or shrunk to `steps` in all, in their proportion.

    A phase of 0 steps keeps them. Raises InputError for fewer steps than phases.
    """
    running = [i for i, phase in enumerate(recipe.phases) if phase.steps]
    if not running:
        raise InputError(f"The recipe {recipe.name!r} has no steps to train, so none to change.")
    if steps < len(running):
        raise InputError(
            f"{steps} steps are too few for the {len(running)} phases of {recipe.name!r}."
        )
    scale, phases, left = steps / recipe.steps, list(recipe.phases), steps
    for place, index in enumerate(running):
        after = len(running) - 1 - place
        phase = phases[index]
        own = min(max(1, round(phase.steps * scale)), left - after) if after else left
        phases[index] = replace(phase, steps=own, warmup=round(phase.warmup * scale))
        left -= own
    return replace(recipe, phases=tuple(phases))


def miniature(recipe: Recipe) -> Recipe:
    """The recipe for a small model of 128 px, such as paperdoll's: a quarter of everything.

    One rule for every recipe: resolution, steps, class images, the size of enlarged maps and the
    seam of a label, in cells, are divided by four, and learning rates are multiplied by four, so
    that rate times steps, the length of the way, stays. SNRs, which are stated for 512 px, are
    divided by sixteen, so that losses act at the same noise levels. Attention is looked at in
    layers twice as fine, since a small UNet has a level less: what is 16x16 for SD 1.5 at 512 px
    is 8x8 here, the coarsest but the middle.
    The frozen model computes in its own number format.
    """
    refocus, prior, labels = recipe.refocus, recipe.prior, recipe.labels
    return replace(
        with_rates(with_steps(recipe, round(recipe.steps / 4)), 4),
        resolution=recipe.side // 4,
        refocus=replace(
            refocus,
            factors=tuple(max(1, factor // 2) for factor in refocus.factors),
            map_size=refocus.map_size and refocus.map_size // 4,
        ),
        prior=replace(prior, images=round(prior.images / 4)),
        labels=replace(
            labels, seam=labels.seam / 4, max_snr=labels.max_snr and labels.max_snr / 16
        ),
        identity=replace(recipe.identity, min_snr=recipe.identity.min_snr / 16),
        dino=replace(recipe.dino, min_snr=recipe.dino.min_snr / 16),
        precision="model",
    )


def fitted(recipe: Recipe, family: FamilyName) -> Recipe:
    """The recipe with what it leaves to the base model's family.

    That is its resolution, and whether the empty prompt's answer is kept: where guidance is
    distilled none is asked for, and on a UNet it is kept if the recipe says so.
    """
    facts = FAMILIES[family]
    asked = recipe.unconditional.networks == "all" or facts.network == "transformer"
    if recipe.uses("unconditional") and (facts.distilled or not asked):
        recipe = with_weights(recipe, unconditional=0)
    return replace(recipe, resolution=recipe.resolution or facts.resolution)


def spelled(recipe: Recipe, concepts: Sequence[Concept]) -> Recipe:
    """The recipe for concepts of which some have no vectors: the LoRA carries those throughout.

    A phase of the tokens alone then trains the LoRA as well, on the same tasks: at the rates of the
    first phase that trains it, and with that one's attention loss. Where no concept has vectors,
    none are trained. Raises InputError for a recipe without a phase that trains the LoRA.
    """
    without = [concept for concept in concepts if not concept.vectors]
    if not without:
        return recipe
    lora = next((phase for phase in recipe.phases if phase.steps and _trains_lora(phase)), None)
    if lora is None:
        raise InputError(
            f"The recipe {recipe.name!r} trains the tokens' vectors alone, and {without[0].name!r} "
            "has none: give it one or more, or take a recipe that trains the LoRA."
        )
    phases = []
    for phase in recipe.phases:
        rates, weights, name = phase.rates, phase.weights, phase.name
        if rates.tokens and not _trains_lora(phase):
            rates = replace(lora.rates, tokens=rates.tokens)
            weights = weights.changed(
                attention=weights.attention or lora.weights.attention,
                unconditional=weights.unconditional or lora.weights.unconditional,
            )
            name = "each alone"
        if len(without) == len(concepts):
            rates, weights = replace(rates, tokens=0.0), weights.changed(token_norm=0)
        phases.append(replace(phase, name=name, rates=rates, weights=weights))
    return replace(recipe, phases=tuple(phases))


def _trains_lora(phase: Phase) -> bool:
    return bool(phase.rates.unet or phase.rates.text_encoder)


def with_rates(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every learning rate multiplied by a factor."""
    phases = tuple(
        replace(
            phase,
            rates=Rates(
                *(factor * getattr(phase.rates, f) for f in ("tokens", "unet", "text_encoder"))
            ),
        )
        for phase in recipe.phases
    )
    return replace(recipe, phases=phases)


def with_rate(recipe: Recipe, group: str, rate: float) -> Recipe:
    """The recipe with this learning rate of a group: tokens, unet or text_encoder.

    It goes to every phase that trains the group. Where none does, the tokens' goes to all phases,
    the others' to those that train the UNet, or else to the last.
    """
    own = [i for i, phase in enumerate(recipe.phases) if getattr(phase.rates, group, 0)]
    places = own or _fallback(recipe.phases, everywhere=group == "tokens")
    return changed(recipe, {f"phases[{i}].rates.{group}": rate for i in places})


def with_weights(recipe: Recipe, **weights: float) -> Recipe:
    """The recipe with these weights of losses.

    One goes to every phase that gives the loss a weight. Where none does, source, style and
    token_norm go to all phases, other losses to those that train the UNet, or else to the last.
    """
    changes = {}
    for name, weight in weights.items():
        own = [i for i, phase in enumerate(recipe.phases) if getattr(phase.weights, name, 0)]
        places = own or _fallback(recipe.phases, everywhere=name in _EVERYWHERE)
        changes.update({f"phases[{i}].weights.{name}": weight for i in places})
    return changed(recipe, changes)


def _fallback(phases: tuple[Phase, ...], everywhere: bool) -> list[int]:
    """The phases for what no phase has so far."""
    running = [i for i, phase in enumerate(phases) if phase.steps]
    if everywhere:
        return running
    return [i for i in running if phases[i].rates.unet] or running[-1:]


def without_masks(recipe: Recipe) -> Recipe:
    """The recipe on whole pictures: no masks, so no Attention Refocusing and no face to lay in.

    A portrait as it is shows another face, so the composed prompt then counts once at most.
    """
    bare = with_weights(replace(recipe, masked=False, pseudo_label="portrait"), attention=0)
    phases = (
        replace(phase, weights=phase.weights.changed(composed=min(phase.weights.composed, 1)))
        for phase in bare.phases
    )
    return replace(bare, phases=tuple(phases))
