"""A whole bench: what is still missing is trained and scored, and the report grows line by line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import to_dict
from ..digests import digest
from ..faces.embed import FaceEmbedder, name_of
from ..faces.registry import known
from ..files import check_writable
from ..training import Listener
from .machine import machine
from .page import save_strip, write_page
from .plan import Plan
from .report import Report, check_report
from .runner import Drawn, Models, Runner

logger = logging.getLogger(__name__)

JSON, PAGE = "report.json", "report.html"
SPACE = 300 * 2**20
"""Bytes that must be free before a bench: a training's state, and the pages."""

_SHOWN = 4  # pictures in a strip, before those of the edits


@dataclass(frozen=True)
class Output:
    """Where a bench writes, and how: pictures on the page, or none; fresh: not going on."""

    folder: Path
    pictures: bool = True
    fresh: bool = False

    def check(self) -> None:
        """Raise InputError for a file in the way, StorageError where nothing can be written."""
        check_writable(self.folder, SPACE)
        check_report(self.folder / JSON, self.fresh)


def setup_of(
    plan: Plan, models: Models, *, title: str = "", sha256: str | None = None
) -> dict[str, Any]:
    """What every line of a report shares, as JSON-ready data without a path or a folder's name.

    title: what the user calls the base model. sha256: of its file, if it is one.
    """
    backbone, clip = models.backbone, models.clip
    return {
        "machine": machine(backbone.device),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "base": {
            "title": title,
            "family": backbone.family,
            "prediction": backbone.schedule.prediction,
            "sha256": sha256,
            "fingerprint": backbone.fingerprint()[:24],
            "small_decoder": backbone.decoder is not None,
        },
        "faces": {
            "loss": None if models.loss is None else _network(models.loss),
            "judge": _network(models.judge),
            "parser": models.parser is not None,
        },
        "clip": None if clip is None else clip.digest,
        "drawing": plan.shared(),
    }


def carry_out(
    plan: Plan, models: Models, setup: Mapping[str, Any], output: Output, listener: Listener
) -> Report:
    """Do what a report lacks and return it; JSON and page are written after every training.

    What interrupts it loses nothing: done again with the same arguments it goes on. Raises
    InputError, before anything is trained, for a report of another setup, or sets of pictures that
    show no one person or style; StorageError where nothing can be written.
    """
    folder = output.folder
    pictures = folder / "pictures" if output.pictures else None
    output.check()
    runner = Runner(plan, models, folder / "states", listener)
    report = Report(
        folder / JSON,
        setup,
        {name: to_dict(recipe) for name, recipe in plan.recipes.items()},
        [runner.facts(*pair) for pair in plan.pairs()],
        fresh=output.fresh,
    )
    todo, every = report.missing(plan), len(plan.trials())
    if pictures is not None:
        for person, style in plan.pairs():
            shown = (*plan.people[person].used.images[:4], *plan.styles[style].used.images[:4])
            squares = [_squared(image) for image in shown]
            save_strip(squares, pictures / f"{person + 1}-{style + 1}.jpg")
    for number, trial in enumerate(todo, start=every - len(todo) + 1):
        logger.info("%s", f"Training {number} of {every}: {trial}.")
        line, drawn = runner.run(trial)
        if drawn is not None and pictures is not None:
            save_strip(_some(drawn), pictures / f"{line['version']}.jpg")
        report.add(line)
        runner.forget()
        write_page(report, folder / PAGE, pictures)
    write_page(report, folder / PAGE, pictures)
    return report


def _network(network: FaceEmbedder) -> dict[str, str]:
    """A face embedder's name where it is a public one, and its hash."""
    name = name_of(network)
    entry = known(name)
    return {"name": entry[1].file if entry else "a file of one's own", "hash": digest(network)[:24]}


def _some(drawn: Drawn) -> list[Tensor]:
    return [*drawn.composed[:_SHOWN], *(images[0] for images in drawn.edited.values())]


def _squared(image: Tensor) -> Tensor:
    """The central square of an image (3,H,W)."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]
