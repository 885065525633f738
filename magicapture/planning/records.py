"""What plans and trainings have found on this computer, in a file of the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..backbone import Backbone
from ..config import Phase, Recipe
from ..data import Photo
from ..dino import Dino
from ..errors import StorageError
from ..files import atomic_write
from .footprint import Footprint

logger = logging.getLogger(__name__)

FOLDER = "MAGICAPTURE_CACHE"
"""The variable that names another folder."""

_VERSION = 1
_MOST = 200  # the newest


@dataclass(frozen=True)
class Record:
    """What is known of one training's shapes and settings on one device.

    key: of device, models and settings; models: of device and models alone. footprint: rehearsed.
    seconds: of a step by phase, as measured. slack: the bytes that its activations were measured to
    take over those rehearsed; None where no step has run.
    """

    key: str
    models: str
    device: str
    footprint: Footprint
    seconds: Mapping[str, float]
    slack: float | None = None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Record:
        """What was written; raises TypeError or KeyError for anything else."""
        return cls(**{**data, "footprint": Footprint.read(data["footprint"])})

    @property
    def speeds(self) -> list[float]:
        """FLOPs a second of each phase that was measured."""
        flops = {phase.name: phase.flops for phase in self.footprint.phases}
        return [flops[name] / taken for name, taken in self.seconds.items() if name in flops]


class Records:
    """The records of a file, the newest last; a file that cannot be read or written is as none."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or cache_folder() / "plans.json"
        self._records = {record.key: record for record in self._read()}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, key: str) -> Record | None:
        """The record of a key, if there is one."""
        return self._records.get(key)

    def keep(self, record: Record) -> None:
        """Add a record, in the place of what was known of the same."""
        self._records = {one.key: one for one in self._read()}  # others write as well
        self._records.pop(record.key, None)
        self._records[record.key] = record
        newest = list(self._records.values())[-_MOST:]
        text = json.dumps({"version": _VERSION, "records": [asdict(one) for one in newest]})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.file, lambda path: path.write_text(text, "utf-8"))
        except (OSError, StorageError) as error:
            logger.debug("%s", error)

    def speed(self, device: str, models: str) -> float | None:
        """FLOPs a second on a device: the newest measured of these models, else of any."""
        measured = [one for one in self if one.device == device and one.speeds]
        same = [one for one in measured if one.models == models]
        return max((same or measured)[-1].speeds) if measured else None

    def _read(self) -> list[Record]:
        try:
            data = json.loads(self.file.read_text("utf-8"))
            if data["version"] != _VERSION:
                return []
            return [Record.read(one) for one in data["records"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.debug("%s is not read: %s", self.file, error)
            return []


def cache_folder() -> Path:
    """The user's folder for what can be made again: $MAGICAPTURE_CACHE, or the system's own."""
    if own := os.environ.get(FOLDER):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "magicapture"


def models_key(device: str, backbone: Backbone, dtype: torch.dtype | None) -> str:
    """A hash of a device, of all shapes of a model and of the formats it is held in."""
    shapes = [
        (part, name, list(tensor.shape), str(tensor.dtype))
        for part, module in backbone.modules.items()
        for name, tensor in module.named_parameters()
    ]
    return _hash(device, torch.__version__, type(backbone).__name__, str(dtype), shapes)


def settings_key(models: str, recipe: Recipe, faces: float, parts: str) -> str:
    """A hash of what decides what a step takes on these models, and of nothing else.

    faces: how large the faces are, as a share of the picture; parts: what else is used, in words.
    """
    settings = (
        *(recipe.side, recipe.batching, recipe.accumulation, recipe.checkpointing),
        *(recipe.optimizer, recipe.precision, recipe.lora.rank, recipe.lora.targets),
        *(asdict(recipe.refocus), asdict(recipe.identity), recipe.words.kept),
        [_phase_key(phase) for phase in recipe.phases if phase.steps],
    )
    return _hash(models, settings, round(faces, 1), parts)


def _phase_key(phase: Phase) -> object:
    used = [name for name, weight in phase.weights.items() if weight]
    return phase.name, [name for name, rate in asdict(phase.rates).items() if rate], used


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def with_steps(footprint: Footprint, recipe: Recipe) -> Footprint:
    """A kept footprint for a recipe that differs in how many steps it has."""
    steps = [phase.steps for phase in recipe.phases if phase.steps]
    phases = zip(footprint.phases, steps, strict=True)
    return replace(footprint, phases=tuple(replace(phase, steps=count) for phase, count in phases))


def dino_key(dino: Dino) -> str:
    """A hash of what decides how dear a DINO is: its shapes, and how many patches it sees."""
    shapes = [(name, list(tensor.shape)) for name, tensor in dino.named_parameters()]
    return _hash(dino.grid, shapes)


def face_share(photo: Photo) -> float:
    """How large the face in a photo is: the spread of its landmarks over the shorter side."""
    if photo.landmarks is None:
        return 0.0
    spread = photo.landmarks.amax(0) - photo.landmarks.amin(0)
    return float(spread.max()) / min(photo.size)
