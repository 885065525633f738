"""Names and units that recipes had in earlier versions, read as what they are called today."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

from .schedule import SIDE, at_side, stable_diffusion_snr
from .settings import refuse

logger = logging.getLogger(__name__)

_STEPS = 1000


def snr_between(timestep: int) -> float:
    """An SNR between those of t - 1 and t of Stable Diffusion, t in 1..1000, in few digits.

    What has at least this SNR is at t' < t; 0, which all have, for 1000.
    """
    if timestep == _STEPS:
        return 0.0
    above, below = stable_diffusion_snr()[timestep - 1 : timestep + 1].tolist()
    middle = (below * above) ** 0.5
    tries = (float(f"{middle:.{digits}g}") for digits in range(1, 17))
    return next((snr for snr in tries if below < snr < above), middle)


class _Renamed(NamedTuple):
    name: str
    least: int
    read: Callable[[int, float], float | None]
    """A timestep of Stable Diffusion, and the factor on SNRs for the recipe's side, to a value."""


_RENAMED = {
    "identity": {
        "max_timestep": _Renamed("min_snr", 1, lambda t, scale: snr_between(t) / scale),
    },
    "labels": {
        "face_above": _Renamed("max_snr", 0, lambda t, scale: snr_between(t) / scale if t else None)
    },
    "phases": {"max_timestep": _Renamed("share", 1, lambda t, _: t / _STEPS)},
}


def is_older(path: str, name: str) -> bool:
    """Whether the settings at a path, such as phases[0], had one of this name."""
    return name in _RENAMED.get(re.sub(r"\[\d+\]$", "", path), {})


def current(data: Any) -> Any:
    """A recipe's data in today's names and units; what is no recipe at all stays as it is.

    A timestep becomes the SNR that Stable Diffusion has there at the recipe's own resolution, so
    that the recipe does what it did. An older name counts where both are given. Raises InputError
    for a timestep out of range.
    """
    if not isinstance(data, Mapping):
        return data
    side = data.get("resolution", SIDE)
    known = isinstance(side, int) and side > 0  # another is refused by its own check
    scale = at_side(1.0, int(side)) if known else 1.0
    made = dict(data)
    for key in _RENAMED.keys() & data.keys():
        value, renamed = data[key], _RENAMED[key]
        made[key] = (
            [_today(part, renamed, f"{key}[{i}]", scale) for i, part in enumerate(value)]
            if isinstance(value, (list, tuple))
            else _today(value, renamed, key, scale)
        )
    return made


def _today(data: Any, renamed: Mapping[str, _Renamed], path: str, scale: float) -> Any:
    if not isinstance(data, Mapping):
        return data
    made = dict(data)
    for name, to in renamed.items():
        if name not in made:
            continue
        value = made.pop(name)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not to.least <= value <= _STEPS:
            refuse(f"{path}.{name}", f"a whole number, {to.least} to {_STEPS}", value)
        made[to.name] = to.read(int(value), scale)
        logger.info(
            "%s.%s = %d is of an earlier version and is read as %s = %s.",
            *(path, name, value, to.name, made[to.name]),
        )
    return made
