"""One trial: train, draw, score, and measure what it took."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..backbones import DiffusersBackbone
from ..clip import Clip
from ..errors import MagiCaptureError, StorageError
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import FaceEmbedder
from ..faces.protocols import Detector, Parser
from ..memory import PeakMemory
from ..prompts import prompt_for, with_edit
from ..sampling import adapted, sample
from ..style import StyleReader
from ..training import Event, Listener, Prepared, Resumed, Stepped, Trainer
from .judge import Case, Judge
from .plan import Plan, Trial

logger = logging.getLogger(__name__)

_TOGETHER = 4  # pictures in a batch
_LITTLE = 0.01  # a gain of the untrained model below which words cannot be seen to be obeyed

Line = dict[str, Any]
"""What is reported of a trial, as JSON-ready data."""


@dataclass(frozen=True, eq=False)
class Models:
    """The networks: loss is the identity loss's face embedder, judge another one that scores."""

    backbone: DiffusersBackbone
    detector: Detector
    parser: Parser | None
    loss: FaceEmbedder | None
    judge: FaceEmbedder
    clip: Clip | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures (N,3,S,S) of the composed prompt, and by edit; each edit has the same seeds."""

    composed: Tensor
    edited: Mapping[str, Tensor]


class Runner:
    """Does trials of a plan. states: the folder from which stopped trainings go on.

    Raises InputError where a set shows no one person or no one style.
    """

    def __init__(self, plan: Plan, models: Models, states: Path, listener: Listener) -> None:
        self.plan, self.models, self.states, self.tell = plan, models, states, listener
        analyzer = FaceAnalyzer(models.detector, models.parser, models.judge)
        reader = StyleReader(models.backbone)
        _, side = plan.sampling.size(models.backbone.family)
        self.judge = Judge(analyzer, reader, plan.people, plan.styles, side, models.clip)
        self.cases = {pair: self.judge.case(*pair) for pair in plan.pairs()}
        self._state: Path | None = None  # of the newest training

    def facts(self, person: int, style: int) -> dict[str, Any]:
        """What is known of a person and a style, without a name."""
        case, shots = self.cases[person, style], self.plan.people[person]
        portraits = self.plan.styles[style]
        return {
            "person": person + 1,
            "style": style + 1,
            "photos": [len(shots.used), len(shots.held)],
            "portraits": [len(portraits.used), len(portraits.held)],
            "own_cosine": round(case.person.own, 4),
            "references": self.judge.references(person, style, case),
        }

    def run(self, trial: Trial) -> tuple[Line, Drawn | None]:
        """The trial's line of the report and its pictures; a failure is a line without scores.

        So one recipe that does not fit the model or the memory costs the others nothing. What
        interrupts it, interrupts it; the training is kept and goes on next time.
        """
        named = {"person": trial.person + 1, "style": trial.style + 1, "recipe": trial.recipe}
        line: Line = {**named, "seed": trial.seed, "version": self.plan.version(trial)}
        try:
            adapter, cost = self._trained(trial)
            drawn, drawing = self._drawn(adapter, trial)
        except StorageError:  # the next one would not be kept either
            raise
        except MagiCaptureError as error:
            logger.warning("%s", f"{trial} failed: {error}")
            return {**line, "failed": type(error).__name__}, None
        case = self.cases[trial.person, trial.style]
        line |= {"scores": self.judge.scores(drawn.composed, case), "cost": cost | drawing}
        line["edits"] = [self._edit(words, drawn, case) for words in drawn.edited]
        return line, drawn

    def forget(self) -> None:
        """Remove the newest training's state, once its line is kept."""
        if self._state is not None:
            self._state.unlink(missing_ok=True)

    # -- training and drawing -------------------------------------------------------------------

    def _trained(self, trial: Trial) -> tuple[Adapter, dict[str, Any]]:
        seconds: list[float] = []
        memory, resumed = PeakMemory(self.models.backbone.device), False

        def listen(event: Event) -> None:
            nonlocal resumed
            if isinstance(event, Stepped):
                seconds.append(event.seconds)
                memory.sample()
            resumed = resumed or isinstance(event, Resumed)
            self.tell(event)

        started = time.perf_counter()
        with Trainer.open(
            self.plan.job(trial),
            self.models.backbone,
            embedder=self.models.loss,
            listener=listen,
            state_folder=self.states,
        ) as trainer:
            self._state = trainer.keeper.path if trainer.keeper else None
            adapter = trainer.run()
        took = time.perf_counter() - started
        return adapter, {
            "steps": trainer.step,
            "step_seconds": _rounded(statistics.median(seconds)) if seconds else None,
            "train_seconds": None if resumed else _rounded(took),
            "train_gpu_mib": memory.gpu,
            "train_process_mib": memory.process,
        }

    def _drawn(self, adapter: Adapter, trial: Trial) -> tuple[Drawn, dict[str, Any]]:
        settings = self.plan.settings
        recipe = self.plan.recipes[trial.recipe]
        prompt = prompt_for(adapter.concepts, recipe.prompts)
        count = settings.pictures + settings.edit_pictures * len(self._edits)
        done, first = 0, 1000 * trial.seed

        def some(words: str, number: int) -> Tensor:
            nonlocal done
            images = self._sampled(adapter, prompt, words, number, first)
            done += number
            self.tell(Prepared("drawing", done, count))
            return images

        memory = PeakMemory(self.models.backbone.device)
        with adapted(self.models.backbone, adapter):
            started = time.perf_counter()
            composed = some("", settings.pictures)
            took = time.perf_counter() - started
            edited = {words: some(words, settings.edit_pictures) for words in self._edits}
        memory.sample()
        return Drawn(composed, edited), {
            "picture_seconds": _rounded(took / settings.pictures),
            "draw_gpu_mib": memory.gpu,
            "draw_process_mib": memory.process,
        }

    def _sampled(
        self, adapter: Adapter | None, prompt: str, words: str, number: int, first: int
    ) -> Tensor:
        """Pictures on the CPU, some at a time."""
        vectors = None if adapter is None else adapter.vectors()
        settings = replace(self.plan.sampling, edit=words)
        parts = []
        for start in range(0, number, _TOGETHER):
            prompts = [prompt] * min(_TOGETHER, number - start)
            seed = first + start
            parts.append(
                sample(self.models.backbone, prompts, vectors, settings, seed=seed).float().cpu()
            )
        return torch.cat(parts)

    @property
    def _edits(self) -> tuple[str, ...]:
        return self.plan.settings.edits if self.plan.settings.edit_pictures else ()

    # -- edits ---------------------------------------------------------------------------------

    def _edit(self, words: str, drawn: Drawn, case: Case) -> dict[str, Any]:
        edited = drawn.edited[words]
        scores = self.judge.scores(edited, case)
        told: dict[str, Any] = {"words": words, "scores": scores, "obedience": None}
        if self.models.clip is not None:
            possible = self._gain_untrained(words)
            gain = self._gain(words, drawn.composed[: len(edited)], edited)
            told["obedience"] = round(gain / possible, 4) if possible > _LITTLE else None
        return told

    def _gain(self, words: str, plain: Tensor, edited: Tensor) -> float:
        """How much nearer, by CLIP, the words bring pictures to a text with them."""
        assert self.models.clip is not None
        text = self.models.clip.of_text(with_edit(self._bare, words))
        before, after = (
            self.models.clip.of_images(images[: len(plain)]) @ text.T for images in (plain, edited)
        )
        return float(after.mean() - before.mean())

    @cache  # noqa: B019 (a runner lives as long as its program)
    def _gain_untrained(self, words: str) -> float:
        """The same of the base model, for which the words are all that is asked."""
        number = self.plan.settings.edit_pictures
        plain, edited = (self._sampled(None, self._bare, asked, number, 0) for asked in ("", words))
        return self._gain(words, plain, edited)

    @property
    def _bare(self) -> str:
        return f"a photo of a {self.plan.settings.class_word}"


def _rounded(seconds: float) -> float:
    return round(seconds, 4)
