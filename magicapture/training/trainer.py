"""The two-phase loop: phases as data, all tasks in every step, events out, state in and out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from ..adapters import Adapter
from ..backbone import Backbone
from ..checkpointing import checkpointed
from ..config import Phase, Precision
from ..errors import NumericalError, OutOfMemoryError
from ..faces.embed import FaceEmbedder
from ..losses import needs
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample_latents
from .checks import check_backbone, refocusing_capture
from .events import Event, Listener, Previewed, Resumed, Stepped, Warned
from .job import TrainingJob, generator
from .look import look
from .loras import Loras
from .optim import make_optimizer, set_rates
from .prepare import Materials, prepared
from .state import check_space, load_state, save_state, state_path
from .step import Objective, optimise

logger = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype | None] = {
    "model": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Trainer:
    """A training run, made ready by `Trainer.open`; `run` trains to the end.

    step: optimiser steps done. history: the losses of each step by name.
    """

    def __init__(
        self,
        job: TrainingJob,
        backbone: Backbone,
        materials: Materials,
        tell: Listener,
        *,
        state_file: Path | None = None,
        save_every: int = 200,
    ) -> None:
        self.job, self.backbone, self.recipe = job, backbone, job.recipe
        self.materials, self.vectors = materials, materials.vectors
        self.tell, self.state_file, self.save_every = tell, state_file, save_every
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.loras = Loras(backbone, job.recipe.lora, job.seed)
        self.generator = generator(job.seed, "steps")
        fp16 = backbone.dtype == torch.float16
        self.scaler = GradScaler(backbone.device.type, enabled=fp16)
        self._shown = 0  # the step of the newest preview
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        job: TrainingJob,
        backbone: Backbone,
        *,
        embedder: FaceEmbedder | None = None,
        listener: Listener | None = None,
        state_folder: Path | None = None,
        save_every: int = 200,
        fresh: bool = False,
    ) -> Iterator[Trainer]:
        """A run made ready: `with Trainer.open(job, backbone) as trainer: trainer.run()`.

        On the way in the job is checked, the models are opened for gradients and the photos
        encoded; on the way out every model is as it was, also after an exception. `listener` is
        called with each event and stops the run by raising. With a `state_folder` the run is saved
        there, every `save_every` steps and whenever it stops, and a run of just the same job goes
        on from there unless `fresh`. Raises InputError and UnsupportedModelError, before anything
        is trained, for what would spoil the run.
        """
        tell = listener or _ignore
        for text in job.check():
            tell(Warned(text))
        check_backbone(job, backbone)
        if state_folder:
            check_space(state_folder)
        with ExitStack() as scope:
            with _memory_explained():
                scope.enter_context(backbone.training(DTYPES[job.recipe.precision]))
                materials = scope.enter_context(prepared(job, backbone, embedder, tell))
            file = state_path(state_folder, materials.fingerprint) if state_folder else None
            trainer = cls(job, backbone, materials, tell, state_file=file, save_every=save_every)
            if file and not fresh and (state := load_state(file, materials.fingerprint)):
                trainer.resume(state)
                tell(Resumed(trainer.step, trainer.steps))
            yield trainer

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
                    self._run_phase(phase, end - phase.steps, preview_every, preview)
            if preview_every and self._shown != self.step:
                self._show(preview)
        except BaseException:
            self._save_quietly()
            raise
        self._save_quietly()  # asked for again, this run answers at once
        return self.adapter()

    def adapter(self) -> Adapter:
        """What has been learned so far."""
        judge = self.materials.face_model
        return Adapter(
            lora=self.loras.weights(),
            tokens=self.vectors.tensors(),
            family=self.backbone.family,
            recipe=self.recipe,
            concepts=self.job.concepts,
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
        prompt = prompt_for(self.job.concepts, self.recipe.prompts)
        chance = generator(self.job.seed, "look")
        portrait = self.materials.batches.reference.any(chance)
        with self.loras.shown():
            latents = sample_latents(
                self.backbone, prompt, self.vectors, settings, seed=self.job.seed
            )
            seen = look(self.backbone, prompt, self.job.concepts, self.vectors, portrait, chance)
        images = self.backbone.decode_fast(latents).float().clamp(0, 1)
        return Previewed(self.step, prompt, images, seen)

    def state(self) -> dict[str, Any]:
        """Everything that `resume` needs, as plain data and CPU tensors."""
        return {
            "fingerprint": self.materials.fingerprint,
            "step": self.step,
            "history": self.history,
            "tokens": self.vectors.tensors(),
            "lora": self.loras.state_dict(),
            "optimizer": self._optimizer.state_dict() if self._optimizer else None,
            "scaler": self.scaler.state_dict(),
            "chance": self._chance(),
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
        self._take_back(state["chance"])

    # -- a phase ------------------------------------------------------------------------------

    def _run_phase(
        self, phase: Phase, first: int, preview_every: int, preview: SamplingSettings | None
    ) -> None:
        if self.step == first:
            self._optimizer_state = None  # that of the phase before, when resumed at its end
        with self._phase(phase) as objective, _memory_explained():
            while (at := self.step - first) < phase.steps:
                started = time.perf_counter()
                losses, norm = self._step(objective, at)
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
        wanted = needs(phase)
        with ExitStack() as scope:
            groups = {
                "tokens": list(self.vectors.parameters()),
                **scope.enter_context(self.loras.injected(phase)),
            }
            if self.recipe.checkpointing:
                scope.enter_context(checkpointed(self.backbone.checkpointed_modules()))
            capture = None
            if "attention" in wanted:
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
                *self.job.concepts,
                self.vectors,
                capture,
                self.materials.identity if "face model" in wanted else None,
            )
        self._optimizer = None

    def _step(self, objective: Objective, at: int) -> tuple[dict[str, float], float]:
        """One optimiser step, `at` of its phase; an interrupted one takes its chance back."""
        assert self._optimizer is not None
        phase, before = objective.phase, self._chance()
        set_rates(self._optimizer, phase, at)
        try:
            return optimise(
                objective,
                lambda: self.materials.batches.rows(phase, self.generator),
                self._optimizer,
                self.scaler,
                at / phase.steps,
                self._check_finite,
            )
        except BaseException:
            self._take_back(before)
            raise

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

    def _chance(self) -> dict[str, Any]:
        """Where the run's random numbers stand."""
        return {
            "generator": self.generator.get_state(),
            **self.materials.batches.state_dict(),
        }

    def _take_back(self, state: Mapping[str, Any]) -> None:
        """Go back to where the random numbers stood."""
        self.generator.set_state(state["generator"])
        self.materials.batches.load_state_dict(state)

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
