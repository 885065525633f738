"""The two-phase loop: phases as data, all tasks in every step, events out, state in and out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..adapters import Adapter
from ..backbone import Backbone
from ..checkpointing import checkpointed
from ..config import Phase, Precision
from ..errors import NumericalError
from ..faces.embed import FaceEmbedder, name_of
from ..interrupts import uninterrupted
from ..memory import memory_explained
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample_latents
from .checks import check_backbone, probe, refocusing_capture
from .events import Event, Listener, Previewed, Resumed, Stepped, Warned
from .fingerprint import run_name
from .job import TrainingJob, generator
from .look import look
from .loras import Loras
from .objective import Losses, Objective
from .optim import make_optimizer, set_rates
from .prepare import prepare
from .state import EVERY_STEPS, StateKeeper, check_space

logger = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype | None] = {
    "model": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_IN_LESS_MEMORY = (
    "Train in less: batching in_turn and checkpointing on (save_memory in ComfyUI), a lower "
    "resolution, or a TAESD as the fast decoder; close other programs that use the GPU.",
    "Train in less: a lower resolution, fewer or smaller photos; close other programs.",
)


class Trainer:
    """A training run as a context: `with Trainer(job, backbone) as trainer: trainer.run()`.

    On the way in the job is checked, the models are opened for gradients and the photos encoded;
    on the way out every model is as it was, also after an exception. `listener` is called with
    each event and stops the run by raising. With a `state_folder` the run is saved there, every
    `save_every` steps, every minute and whenever it stops, and a run of just the same job goes on
    from there unless `fresh`.
    """

    def __init__(
        self,
        job: TrainingJob,
        backbone: Backbone,
        *,
        embedder: FaceEmbedder | None = None,
        listener: Listener | None = None,
        state_folder: Path | None = None,
        save_every: int = EVERY_STEPS,
        fresh: bool = False,
    ) -> None:
        self.job, self.backbone, self.recipe = job, backbone, job.recipe
        self.embedder, self.state_folder, self.save_every = embedder, state_folder, save_every
        self.fresh = fresh
        self.tell: Listener = listener or _ignore
        self.step = 0
        self._shown = 0  # the step of the newest preview
        self.history: list[dict[str, float]] = []
        self.keeper: StateKeeper | None = None
        self._scope = ExitStack()
        self.loras = Loras(backbone, job.recipe.lora, job.seed)
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    def __enter__(self) -> Trainer:
        for text in self.job.check():
            self.tell(Warned(text))
        check_backbone(self.job, self.backbone)
        if self.state_folder:
            check_space(self.state_folder)
        with ExitStack() as scope, memory_explained(*_IN_LESS_MEMORY):
            self._name_run()
            scope.enter_context(self.backbone.training(DTYPES[self.recipe.precision]))
            self._prepare()
            self._scope = scope.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._scope.close()

    # -- what a caller does with a trainer ----------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.steps

    @property
    def phase_ends(self) -> list[int]:
        """The step after which each phase is over."""
        return list(accumulate(phase.steps for phase in self.recipe.phases))

    def run(self, *, preview_every: int = 0, preview: SamplingSettings | None = None) -> Adapter:
        """Train to the end and return the adapter.

        Every `preview_every` steps and at the end (0: never) a preview is drawn, without touching
        the run's random numbers. Whatever ends the run early, its state is saved first.
        """
        try:
            for phase, end in zip(self.recipe.phases, self.phase_ends, strict=True):
                if self.step < end:
                    first = end - phase.steps
                    self._run_phase(phase, first, preview_every, preview)
            if preview_every and self._shown != self.step:
                self._show(preview)
        except BaseException:
            self._save()
            raise
        self._save()  # asked for again, this run answers at once
        return self.adapter()

    def adapter(self) -> Adapter:
        """What has been learned so far."""
        judge = name_of(self.embedder) if self.identity is not None else ""
        return Adapter(
            lora=self.loras.weights(),
            tokens=self.vectors.tensors(),
            family=self.backbone.family,
            recipe=self.recipe,
            concepts=(self.job.subject, self.job.style),
            info={
                "steps": str(self.step),
                "seed": str(self.job.seed),
                "prediction": self.backbone.schedule.prediction_type,
                **({"face_model": judge} if judge else {}),
            },
        )

    @torch.no_grad()
    def preview(self, settings: SamplingSettings | None = None) -> Previewed:
        """Draw the composed prompt with what has been learned, and see where its tokens look.

        The picture has the training's size unless the settings say otherwise.
        """
        side = self.recipe.resolution
        settings = settings or SamplingSettings(steps=20, width=side, height=side)
        concepts = (self.job.subject, self.job.style)
        prompt = prompt_for(concepts, self.recipe.prompts)
        draw = generator(self.job.seed, "look")
        portrait = self.draws.portrait(draw)
        with self.loras.shown():
            latents = sample_latents(
                self.backbone, prompt, self.vectors, settings, seed=self.job.seed
            )
            seen = look(self.backbone, prompt, concepts, self.vectors, portrait, draw)
        images = self.backbone.decode_fast(latents).float().clamp(0, 1)
        return Previewed(self.step, prompt, images, seen)

    def state(self) -> dict[str, Any]:
        """Everything that `resume` needs, as plain data and CPU tensors."""
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "history": self.history,
            "tokens": self.vectors.tensors(),
            "lora": self.loras.state_dict(),
            "optimizer": self._optimizer.state_dict() if self._optimizer else None,
            "scaler": self.scaler.state_dict(),
            "draws": self._draws_state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a state made by the same job and base model."""
        self.step = state["step"]
        self.history = list(state["history"])
        with torch.no_grad():
            for name, of in state["tokens"].items():
                for encoder, values in of.items():
                    self.vectors.get(name, encoder).copy_(values)
        self.loras.load_state_dict(state["lora"])
        self._optimizer_state = state["optimizer"]
        self.scaler.load_state_dict(state["scaler"])
        self._restore_draws(state["draws"])

    def farewell(self, again: str) -> str:
        """What to tell a user who stopped the run; `again` says how it goes on from its state."""
        if self.keeper is None:
            return f"Stopped after step {self.step} of {self.steps}. It was not to be saved."
        return self.keeper.farewell(self.step, self.steps, again)

    # -- preparation --------------------------------------------------------------------------

    def _name_run(self) -> None:
        self.fingerprint = run_name(self.job, self.backbone, self.embedder)
        if self.state_folder:
            self.keeper = StateKeeper(
                self.state_folder,
                self.fingerprint,
                every_steps=self.save_every,
                warn=lambda text: self.tell(Warned(text)),
            )

    def _prepare(self) -> None:
        materials = prepare(self.job, self.backbone, self.embedder, self.tell)
        self.vectors, self.draws = materials.vectors, materials.draws
        self.identity = materials.identity
        self.generator = generator(self.job.seed, "steps")
        fp16 = self.backbone.dtype == torch.float16
        self.scaler = GradScaler(self.backbone.device.type, enabled=fp16)
        probe(self.job, self.backbone, self.vectors)
        if self.keeper and not self.fresh and (state := self.keeper.load()):
            self.resume(state)
            self.tell(Resumed(self.step, self.steps))

    # -- a phase ------------------------------------------------------------------------------

    def _run_phase(
        self, phase: Phase, first: int, preview_every: int, preview: SamplingSettings | None
    ) -> None:
        if self.step == first:
            self._optimizer_state = None  # that of the phase before, when resumed at its end
        with self._phase(phase) as objective, memory_explained(*_IN_LESS_MEMORY):
            while (at := self.step - first) < phase.steps:
                started = time.perf_counter()
                losses, total, norm = self._step(objective, phase, at)
                seconds = time.perf_counter() - started
                event = Stepped(self.step, self.steps, phase.name, losses, total, norm, seconds)
                self.tell(event)
                if preview_every and self.step % preview_every == 0:
                    self._show(preview)
                if self.keeper and self.keeper.due(self.step):
                    self.keeper.save(self.state())

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[Objective]:
        """Everything a phase puts into the models, and takes out again."""
        with ExitStack() as scope:
            groups = {
                "tokens": list(self.vectors.parameters()),
                **scope.enter_context(self.loras.injected(phase)),
            }
            if self.recipe.checkpointing:
                scope.enter_context(checkpointed(self.backbone.checkpointed_modules()))
            capture = None
            if phase.weights.attention:
                capture = scope.enter_context(refocusing_capture(self.backbone, self.recipe))
            self.vectors.requires_grad_(phase.rates.tokens > 0)
            self._optimizer = make_optimizer(self.recipe, phase, groups)
            if self._optimizer_state is not None:
                self._optimizer.load_state_dict(self._optimizer_state)
                self._optimizer_state = None
            yield Objective(
                self.backbone,
                self.recipe,
                phase,
                self.job.subject,
                self.job.style,
                self.vectors,
                capture,
                self.identity if phase.weights.identity else None,
            )
        self._optimizer = None

    # -- a step -------------------------------------------------------------------------------

    def _step(
        self, objective: Objective, phase: Phase, at: int
    ) -> tuple[dict[str, float], float, float]:
        """One optimiser step, whole or not at all; the mean losses by name, total and norm."""
        before, done = self._draws_state(), self.step
        try:
            losses, norm = self._gradients(objective, phase, at)
            total = losses.pop("total")
            with uninterrupted():  # a signal comes before or after: half of Adam is no step
                self.scaler.step(self._optimizer)  # type: ignore[arg-type]
                self.scaler.update()
                self.step += 1
                self.history.append(losses)
        except BaseException:
            if self.step == done:
                self._restore_draws(before)
            raise
        return losses, total, norm

    def _gradients(
        self, objective: Objective, phase: Phase, at: int
    ) -> tuple[dict[str, float], float]:
        """The clipped gradients of a step; the mean losses by name with "total", and the norm."""
        assert self._optimizer is not None
        optimizer, scaler = self._optimizer, self.scaler
        boost = phase.style_boost if at < phase.steps / 2 else 1.0
        set_rates(optimizer, phase, at)
        optimizer.zero_grad(set_to_none=True)
        parts: list[Losses] = []
        for _ in range(self.recipe.accumulation):
            rows = self.draws.rows(phase, self.generator)
            chunks = [[row] for row in rows] if self.recipe.batching == "in_turn" else [rows]
            for chunk in chunks:
                parts.append(objective(chunk, boost))
                scaler.scale(parts[-1].total / self.recipe.accumulation).backward()
            if phase.weights.token_norm:
                parts.append(objective.token_norms())
                scaler.scale(parts[-1].total / self.recipe.accumulation).backward()
        losses = _mean_losses(parts, self.recipe.accumulation)
        self._check_finite("loss", losses["total"], losses)
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, phase.max_grad_norm or math.inf))
        if not scaler.is_enabled():  # the scaler skips such a step and lowers its scale
            self._check_finite("gradient's norm", norm, losses)
        return losses, norm

    def _check_finite(self, what: str, value: float, losses: Mapping[str, float]) -> None:
        if not math.isfinite(value):
            raise NumericalError(
                f"The {what} became {value} at step {self.step + 1} "
                f"({', '.join(f'{k} {v:.3g}' for k, v in losses.items())}); nothing was changed by "
                "it. Lower the learning rates, or train in bf16 or fp32."
            )

    # -- small things -------------------------------------------------------------------------

    def _show(self, settings: SamplingSettings | None) -> None:
        self._shown = self.step
        with memory_explained(*_IN_LESS_MEMORY):
            seen = self.preview(settings)
        self.tell(seen)

    def _draws_state(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            **self.draws.state_dict(),
        }

    def _restore_draws(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.draws.load_state_dict(state)

    def _save(self) -> None:
        if self.keeper and self.step:
            self.keeper.save(self.state())


def _ignore(event: Event) -> None:
    if isinstance(event, Warned):
        logger.warning(event.text)


def _mean_losses(parts: Sequence[Losses], accumulation: int) -> dict[str, float]:
    """The losses by name and "total", summed over rows and averaged over draws; one transfer."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, value in {**part.by_name, "total": part.total.detach()}.items():
            sums[name] = sums[name] + value if name in sums else value
    values = torch.stack(list(sums.values())).tolist()
    return {name: value / accumulation for name, value in zip(sums, values, strict=True)}
