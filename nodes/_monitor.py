"""What a training run shows under its node: a bar, a text, and one picture of it all."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import Tensor

from ..magicapture.adapters import Adapter
from ..magicapture.backbone import Backbone
from ..magicapture.dino import Dino
from ..magicapture.faces.embed import FaceEmbedder
from ..magicapture.liveview import LiveView, Standing, thumbnails
from ..magicapture.planning import Watch, attempted
from ..magicapture.training import (
    Event,
    Prepared,
    Previewed,
    Resumed,
    Scored,
    Stepped,
    Trainer,
    TrainingJob,
    Warned,
)
from ._comfy import Progress, show_text
from ._common import prompts_of

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_LESS = (
    "It may stop half-way: turn on save_memory in Choose Recipe, lower the resolution, or connect "
    "a TAESD as fast_decoder."
)

REDRAW = 2.0
"""Seconds between two pictures."""

_RECENT = 50  # steps that the speed is the mean of


class Monitor:
    """Turns a run's events into the node's progress bar, text and picture, and heeds Cancel."""

    def __init__(self, node: str | None, job: TrainingJob, preview_every: int = 0) -> None:
        self.node, self.preview_every = node, preview_every
        self.previews: list[Tensor] = []
        self.leakages: list[dict[str, float]] = []
        self.warnings: list[str] = []
        self.needs = ""  # what the run needs, as planned and later as measured
        self.job = job
        self._watch: Watch | None = None
        photos, portraits = (learnable.photos.images for learnable in job.learnables)
        self.view = LiveView(
            {
                _counted(photos, "The person", "photo"): thumbnails(photos),
                _counted(portraits, "The style", "portrait"): thumbnails(portraits),
            },
            steps=job.recipe.steps,
            phases=[*accumulate(phase.steps for phase in job.recipe.phases)][:-1],
            note=_expected(preview_every, job.recipe.steps),
        )
        self._bar = Progress(1, node)
        self._drawn = self._told = time.monotonic()
        self._started = self._told
        self._phase = ""
        self._recent: list[float] = []
        self._drawing = 0.0  # seconds that the newest preview took
        self._tell(0, 1, Standing("Checking photos and model", detail=self._ahead))

    def plan(
        self, backbone: Backbone, embedder: FaceEmbedder | None, dino: Dino | None = None
    ) -> None:
        """Find out what the run needs before it begins, and follow it with that in view.

        Too little memory is said and does not stop it: ComfyUI may make room that none can foresee.
        """
        self._tell(0, 1, Standing("Looking at what it needs", detail=self._ahead))
        plan = attempted(self.job, backbone, embedder, dino, self.preview_every)
        if plan is None:
            return
        self._needs(plan.line())
        if shortage := plan.shortage():
            self.warnings.append(f"{shortage} {_LESS}")
            logger.warning("Train MagiCapture: %s", self.warnings[-1])
        self._watch = Watch(plan, backbone.device, self._needs)

    def _needs(self, line: str) -> None:
        self.needs = line
        logger.info("Train MagiCapture: %s", line)

    @property
    def _ahead(self) -> str:
        done = len(self.view.history)
        return f"{f'after step {done}' if done else 'before step 1'} of {self.view.steps}"

    def begin(self, trainer: Trainer) -> None:
        """Follow a trainer that is ready; its first step may take a while."""
        if self._watch is not None:
            self._watch.begin()
        self.view.history = trainer.history
        if trainer.step < trainer.steps:
            detail = "the first step" if not trainer.step else f"going on after step {trainer.step}"
            standing = replace(self._standing(trainer.step), detail=detail)
            self._tell(trainer.step, trainer.steps, standing)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Prepared):
            self._prepared(event)
        elif isinstance(event, Warned):
            logger.warning("Train MagiCapture: %s", event.text)
            self.warnings.append(event.text)
        elif isinstance(event, Resumed):
            logger.info("Train MagiCapture goes on after step %d of %d.", event.step, event.steps)
        elif isinstance(event, Previewed):
            self._previewed(event)
        elif isinstance(event, Scored):
            self.view.scores[event.step] = event.scores
        elif isinstance(event, Stepped):
            if self._watch is not None:
                self._watch(event)
            self._stepped(event)

    def say(self, text: str) -> None:
        """Show a text under the node, below the warnings and what the run needs."""
        notes = [f"Note: {warning}" for warning in self.warnings]
        show_text("\n".join([*notes, *filter(None, (self.needs, text))]), self.node)

    def _prepared(self, event: Prepared) -> None:
        title = event.stage[:1].upper() + event.stage[1:]
        count = f"{event.done} of {event.total}"
        share = event.done / max(1, event.total)
        self._tell(
            event.done,
            event.total,
            Standing(title, count, self._ahead, done=share),
            always=event.done in (0, event.total),
        )

    def _previewed(self, event: Previewed) -> None:
        self.previews.extend(event.images.cpu())
        self.view.preview, self.view.token_maps = self.previews[-1], event.token_maps
        if event.leakages:
            self.leakages.append(event.leakages)
            self.view.first = self.leakages[0]
        self._drawing = time.monotonic() - self._told
        self._tell(event.step, self.view.steps, self._standing(event.step))

    def _stepped(self, event: Stepped) -> None:
        if event.phase != self._phase:
            self._phase, self._recent = event.phase, []  # another phase has another speed
        self._recent = [*self._recent[1 - _RECENT :], event.seconds]
        last = event.step == event.steps
        losses = ", ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
        self._tell(event.step, event.steps, self._standing(event.step), losses, always=last)

    def _standing(self, step: int) -> Standing:
        """Where the run stands after a step."""
        steps, left, speed = self.view.steps, "", ""
        if self._recent:
            seconds = max(sum(self._recent) / len(self._recent), 1e-9)
            speed = f"{1 / seconds:.2f} it/s"
            wait = (steps - step) * seconds + self._previews_left(step) * self._drawing
            left = f"{_clock(wait)} left"
        title, marks = f"Step {step} of {steps}", [end / steps for end in self.view.phases]
        return Standing(
            title, left if step < steps else "", self._phase, speed, step / steps, marks
        )

    def _previews_left(self, step: int) -> int:
        every, steps = self.preview_every, self.view.steps
        return steps // every - step // every + (steps % every > 0) if every else 0

    def _tell(
        self, done: int, total: int, standing: Standing, more: str = "", always: bool = True
    ) -> None:
        """Show how far the run is; with text and picture if that is due, or `always`."""
        self._told = time.monotonic()
        if self._bar.total != total:
            self._bar = Progress(total, self.node)
        if not always and self._told - self._drawn < REDRAW:
            self._bar.update(done)
            return
        self._bar.update(done, preview=self.view.draw(standing))
        parts = (standing.title, standing.right, standing.detail, standing.detail_right)
        lines = [", ".join(filter(None, parts)), more]
        if self.leakages:
            lines.append(f"leakage: {_shares(self.leakages[-1])}")
        self.say(";\n".join(filter(None, lines)))  # Nodes 2.0 shows them as one line
        self._drawn = time.monotonic()

    def curves(self) -> Image:
        """The loss curves so far, as a Pillow image."""
        return self.view.curves(size=(1100 if self.view.scores else 640, 400), dpi=100)

    def finish(self, adapter: Adapter, remarks: Sequence[str] = ()) -> str:
        """The report of a finished run, which is shown and logged as well, with a last picture."""
        took = _clock(time.monotonic() - self._started)
        steps = len(self.view.history)
        standing = Standing("Finished", f"{steps} steps", "", f"in {took}", 1.0)
        self._bar.update(self._bar.total, preview=self.view.draw(standing))
        report = self._report(adapter, took, remarks)
        show_text(report, self.node)
        logger.info("%s", report)
        return report

    def _report(self, adapter: Adapter, took: str, remarks: Sequence[str]) -> str:
        """What was trained, what to do next, and what the user should know."""
        history = self.view.history
        tokens = ", ".join(adapter.stock_names)
        means = ", ".join(f"{name} {mean:.4f}" for name, mean in _means(history[-20:]).items())
        return "\n".join(
            [
                f"Trained {len(history)} steps of {adapter.recipe.name} in {took}: {tokens}.",
                f"Last losses: {means}.",
                *self._leakage_report(),
                *(f"Note: {text}" for text in (*self.warnings, *remarks)),
                "Next: Save Adapter writes it as files for any loader; Apply Adapter uses it here.",
                *(f"Prompt: {prompt}" for prompt in prompts_of(adapter)),
            ]
        )

    def _leakage_report(self) -> list[str]:
        """How the leakage of the tokens changed over the run, where previews showed it."""
        if not self.leakages:
            return []
        first, last = _shares(self.leakages[0]), _shares(self.leakages[-1])
        return [f"Leakage at the first preview: {first}; at the last: {last}."]


def _means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each loss over the steps that have it."""
    names = sorted({name for losses in history for name in losses})
    found = {name: [losses[name] for losses in history if name in losses] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _expected(preview_every: int, steps: int) -> str:
    """When the first preview comes."""
    if not preview_every:
        return "Without previews: preview_every is 0."
    return f"The first preview comes after step {min(preview_every, steps)}."


def _counted(images: Sequence[Tensor], whose: str, what: str) -> str:
    return f"{whose}: {len(images)} {what}{'s' * (len(images) != 1)}"


def _shares(leakages: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in leakages.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
