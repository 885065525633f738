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
from ..errors import NumericalError, OutOfMemoryError
from ..faces.embed import FaceEmbedder, name_of
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample_latents
from .checks import check_backbone, probe, refocusing_capture
from .events import Event, Listener, Previewed, Resumed, Stepped, Warned
from .job import TrainingJob, generator
from .look import look
from .loras import Loras
from .objective import Losses, Objective
from .optim import make_optimizer, set_rates
from .prepare import prepare
from .state import check_space, load_state, save_state, state_path

logger = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype | None] = {
    "model": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Trainer:
    """A training run as a context: `with Trainer(job, backbone) as trainer: trainer.run()`.

    On the way in the job is checked, the models are opened for gradients and the photos encoded;
    on the way out every model is as it was, also after an exception. `listener` is called with
    each event and stops the run by raising. With a `state_folder` the run is saved there, every
    `save_every` steps and whenever it stops, and a run of just the same job goes on from there
    unless `fresh`.
    """

    def __init__(
        self,
        job: TrainingJob,
        backbone: Backbone,
        *,
        embedder: FaceEmbedder | None = None,
        listener: Listener | None = None,
        state_folder: Path | None = None,
        save_every: int = 200,
        fresh: bool = False,
    ) -> None:
        self.job, self.backbone, self.recipe = job, backbone, job.recipe
        self.embedder, self.state_folder, self.save_every = embedder, state_folder, save_every
        self.fresh = fresh
        self.tell: Listener = listener or _ignore
        self.step = 0
        self._shown = 0  # the step of the newest preview
        self.history: list[dict[str, float]] = []
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
        with ExitStack() as scope, _memory_explained():
            scope.enter_context(self.backbone.training(DTYPES[self.recipe.precision]))
            self._prepare()
            self._scope = scope.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._scope.close()

    @property
    def state_file(self) -> Path | None:
        """Where this run's state is kept, if anywhere."""
        return state_path(self.state_folder, self.fingerprint) if self.state_folder else None

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
            self._save_quietly()
            raise
        self._save_quietly()  # asked for again, this run answers at once
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

    # -- preparation --------------------------------------------------------------------------

    def _prepare(self) -> None:
        materials = prepare(self.job, self.backbone, self.embedder, self.tell)
        self.vectors, self.draws = materials.vectors, materials.draws
        self.identity, self.fingerprint = materials.identity, materials.fingerprint
        self.generator = generator(self.job.seed, "steps")
        fp16 = self.backbone.dtype == torch.float16
        self.scaler = GradScaler(self.backbone.device.type, enabled=fp16)
        probe(self.job, self.backbone, self.vectors)
        known = self.state_file is not None and not self.fresh
        if known and (state := load_state(self.state_file, self.fingerprint)):  # type: ignore[arg-type]
            self.resume(state)
            self.tell(Resumed(self.step, self.steps))

    # -- a phase ------------------------------------------------------------------------------

    def _run_phase(
        self, phase: Phase, first: int, preview_every: int, preview: SamplingSettings | None
    ) -> None:
        if self.step == first:
            self._optimizer_state = None  # that of the phase before, when resumed at its end
        with self._phase(phase) as objective, _memory_explained():
            while (at := self.step - first) < phase.steps:
                started = time.perf_counter()
                losses, norm = self._step(objective, phase, at)
                self.step += 1
                total = losses.pop("total")
                self.history.append(losses)
                seconds = time.perf_counter() - started
                event = Stepped(self.step, self.steps, phase.name, losses, total, norm, seconds)
                self.tell(event)
                if preview_every and self.step % preview_every == 0:
                    self._show(preview)
                if self.step % self.save_every == 0:
                    self._save_quietly()

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

    def _step(self, objective: Objective, phase: Phase, at: int) -> tuple[dict[str, float], float]:
        """One optimiser step; an interrupted one takes its random draws back."""
        before = self._draws_state()
        try:
            return self._optimise(objective, phase, at)
        except BaseException:
            self._restore_draws(before)
            raise

    def _optimise(
        self, objective: Objective, phase: Phase, at: int
    ) -> tuple[dict[str, float], float]:
        """One optimiser step; returns the mean losses by name with "total", and the norm."""
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
        scaler.step(optimizer)
        scaler.update()
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
        with _memory_explained():
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

    def _save_quietly(self) -> None:
        """Save what there is; a failure here must neither end a run nor hide what ended it."""
        if self.state_file is None or not self.step:
            return
        try:
            save_state(self.state_file, self.state())
        except Exception:
            logger.exception("The run's state could not be saved to %s", self.state_file)


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Say what to do where PyTorch says that memory ran out."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "The GPU's memory is not enough. Train in less: batching in_turn and checkpointing on "
            "(save_memory in ComfyUI), a lower resolution, or a TAESD as the fast decoder; close "
            f"other programs that use the GPU. What was trained is kept. ({error})"
        ) from error


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
