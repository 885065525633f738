"""One demo: a pair is rendered, trained on, drawn, and scored beside the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import Adapter
from ..backbone import Backbone
from ..config import Recipe
from ..metrics import Case
from ..paperdoll.attention import Leakages, token_leakage
from ..paperdoll.edits import Edit, edits
from ..paperdoll.judge import Judge
from ..paperdoll.model import doll_backbone
from ..paperdoll.pairs import Pair, masks, pictures
from ..paperdoll.weights import WEIGHTS, loss_embedder
from ..sampling import adapted
from ..training import Listener, Trainer
from .drawing import Drawing, draw, mean_maps
from .example import doll_job
from .settings import DemoSettings, held_out_pair, recipe_for

Rows = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, eq=False)
class Demo:
    """What a demo made.

    results: pictures (N,3,H,W) of the composed prompt, 0..1. truth: for each the true composition
    whose pose is nearest. untrained: the same pictures by the untrained model. edited: pictures
    (n,3,H,W) by edit; obedience: share of them that show it. maps: by token, where it looks in
    the results (N,h,w), 1 at each peak. scores: by metric the untrained model's, the trained
    one's and the ceiling, which true compositions reach; None where there is none.
    seconds: by part of the work.
    """

    settings: DemoSettings
    pair: Pair
    results: Tensor
    truth: Tensor
    untrained: Tensor
    edited: Mapping[Edit, Tensor]
    obedience: Mapping[Edit, float]
    maps: Mapping[str, Tensor]
    scores: Rows
    history: Sequence[Mapping[str, float]]
    phase_ends: Sequence[int]
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Look:
    """An adapter's pictures, where its tokens look in them, and how much leaks."""

    drawing: Drawing
    maps: Mapping[str, Tensor]
    leakages: Leakages


def run(
    settings: DemoSettings,
    listener: Listener,
    *,
    recipe: Recipe | None = None,
    weights: Path = WEIGHTS,
) -> Demo:
    """Render, train, draw and score, telling the listener about it.

    recipe: instead of `recipe_for`'s. weights: a folder like the shipped one. Raises
    InputError for seeds that the model was trained on, StorageError where weights are missing.
    """
    clock = _Clock()
    pair = held_out_pair(settings.identity, settings.style)
    judge, embedder = Judge.load(weights), loss_embedder(weights)
    backbone = doll_backbone(settings.model, weights)
    case = judge.case(pair)
    job = doll_job(pair, recipe or recipe_for(settings.steps, settings.model), settings.seed)
    clock.done("preparing")
    with Trainer.open(job, backbone, embedder=embedder, listener=listener) as trainer:
        untrained = trainer.adapter()
        trained = trainer.run()
    clock.done("training")
    wanted = edits(pair.identity, pair.style)
    asked = wanted["face"], wanted["scene"]
    before = _look(backbone, untrained, pair, (), settings.seed, listener)
    after = _look(backbone, trained, pair, asked, settings.seed, listener)
    clock.done("drawing")
    scores = _scores(judge, case, pair, before, after)
    edited = after.drawing.edited
    clock.done("scoring")
    return Demo(
        settings=settings,
        pair=pair,
        results=after.drawing.results,
        truth=nearest(after.drawing.results, pictures(pair.truth)),
        untrained=before.drawing.results,
        edited=edited,
        obedience={edit: judge.obedience(images, edit) for edit, images in edited.items()},
        maps=after.maps,
        scores=scores,
        history=trainer.history,
        phase_ends=trainer.phase_ends,
        seconds=clock.seconds,
    )


def nearest(images: Tensor, truth: Tensor, side: int = 32) -> Tensor:
    """For each image (B,3,H,W) the nearest of the true ones (N,3,H,W), compared at side x side."""
    small, true = (F.interpolate(x, (side, side), mode="area").flatten(1) for x in (images, truth))
    return truth[torch.cdist(small, true, p=1).argmin(1)]


def _look(
    backbone: Backbone,
    adapter: Adapter,
    pair: Pair,
    asked: Sequence[Edit],
    seed: int,
    listener: Listener,
) -> _Look:
    true, faces = pictures(pair.unseen), masks(pair.unseen)
    with adapted(backbone, adapter):
        drawing = draw(backbone, adapter, asked, seed, listener)
        return _Look(
            drawing,
            mean_maps(backbone, adapter, drawing.results),
            token_leakage(backbone, adapter, true, faces),
        )


def _scores(judge: Judge, case: Case, pair: Pair, before: _Look, after: _Look) -> Rows:
    """Every metric of pictures, and the leakage of both tokens, which has no ceiling but 0."""
    shown = before.drawing.results, after.drawing.results, pictures(pair.unseen)
    columns = [judge.scores(images, case) for images in shown]
    names = ("untrained", "trained", "ceiling")
    rows: dict[str, dict[str, float | None]] = {
        metric: {name: of[metric] for name, of in zip(names, columns, strict=True)}
        for metric in columns[0]
    }
    for role in ("subject", "style"):
        values = getattr(before.leakages, role), getattr(after.leakages, role), None
        rows[f"{role}_leakage"] = dict(zip(names, values, strict=True))
    return rows


class _Clock:
    """Seconds of each part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, part: str) -> None:
        """The part that ran since the last one has ended."""
        now = time.perf_counter()
        self.seconds[part], self._last = round(now - self._last, 1), now
