"""The two-phase loop: phases as data, all tasks in every step, events out, state in and out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from ..adapters import Adapter
from ..backbone import Backbone
from ..checkpointing import checkpointed
from ..config import Phase, Precision
from ..dino import Dino
from ..errors import NumericalError
from ..faces.embed import FaceEmbedder
from ..families import FAMILIES
from ..files import check_writable
from ..interrupts import uninterrupted
from ..losses import needs
from ..memory import memory_explained
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample_latents
from .blocks import is_measured, listed, measured
from .checks import (
    blocks_advice,
    check_backbone,
    check_dino,
    decoder_advice,
    phrase_advice,
    refocusing_capture,
)
from .events import Event, Listener, Previewed, Resumed, Stepped, Warned
from .fingerprint import run_name
from .job import TrainingJob, generator
from .keeping import Keeping, Learned
from .look import look
from .loras import Loras
from .optim import make_optimizer, set_rates, token_factors, token_groups
from .prepare import Materials, prepared
from .state import EVERY_STEPS, SPACE, StateKeeper
from .step import Objective, gradients

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
    """A training run, made ready by `Trainer.open`; `run` trains to the end.

    step: optimiser steps done. history: the losses of each step by name. blocks: those whose maps
    are refocused, with their agreement (`blocks.measured`), where the recipe has them measured.
    keeper: of its state, if it has a folder for it.
    """

    def __init__(
        self,
        job: TrainingJob,
        backbone: Backbone,
        materials: Materials,
        tell: Listener,
        *,
        keeper: StateKeeper | None = None,
    ) -> None:
        self.job, self.backbone, self.recipe = job, backbone, job.recipe
        self.materials, self.vectors = materials, materials.vectors
        self.tell, self.keeper = tell, keeper
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.blocks: dict[str, float] = {}
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
        dino: Dino | None = None,
        listener: Listener | None = None,
        state_folder: Path | None = None,
        save_every: int = EVERY_STEPS,
        fresh: bool = False,
    ) -> Iterator[Trainer]:
        """A run made ready: `with Trainer.open(job, backbone) as trainer: trainer.run()`.

        On the way in the job is checked, the models are opened for gradients and the photos
        encoded; on the way out every model is as it was, also after an exception. `listener` is
        called with each event and stops the run by raising. `dino` is for recipes of things. With a
        `state_folder` the run is saved there, every `save_every` steps, every minute and whenever
        it stops, and a run of just the same job goes on from there unless `fresh`. Raises
        InputError and UnsupportedModelError, before anything is trained, for what would spoil the
        run.
        """
        tell = listener or _ignore
        asked, job = job, job.fitted(backbone.family)
        for text in job.check():
            tell(Warned(text))
        check_backbone(job, backbone)
        check_dino(job, dino)
        if advice := FAMILIES[backbone.family].advice:
            logger.info("%s: %s", FAMILIES[backbone.family].title, advice)
        for text in phrase_advice(asked, backbone):
            tell(Warned(text))
        for text in decoder_advice(job, backbone) if embedder or dino else ():
            tell(Warned(text))
        for text in blocks_advice(job, backbone):
            tell(Warned(text))
        if state_folder:
            check_writable(state_folder, SPACE)
        with ExitStack() as scope:
            with memory_explained(*_IN_LESS_MEMORY):
                keeper = None
                if state_folder:
                    name = run_name(job, backbone, embedder, dino)
                    keeper = StateKeeper(
                        state_folder,
                        name,
                        every_steps=save_every,
                        warn=lambda text: tell(Warned(text)),
                    )
                scope.enter_context(backbone.training(DTYPES[job.recipe.precision]))
                materials = scope.enter_context(prepared(job, backbone, embedder, dino, tell))
            trainer = cls(job, backbone, materials, tell, keeper=keeper)
            if keeper and not fresh and (state := keeper.load()):
                trainer.resume(state)
                tell(Resumed(trainer.step, trainer.steps))
            elif is_measured(job, backbone):
                with memory_explained(*_IN_LESS_MEMORY):
                    trainer.blocks = measured(job, backbone, materials.batches, tell)
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

    def run(
        self,
        *,
        preview_every: int = 0,
        preview: SamplingSettings | None = None,
        keeping: Keeping | None = None,
    ) -> Adapter:
        """Train to the end and return the adapter of the last step.

        Every `preview_every` steps and at the end (0: never) a preview is drawn, without touching
        the run's random numbers. keeping: looks at the run after each step, such as
        `checkpoints.Checkpoints`, and may say that it is over. Whatever ends the run early, its
        state is saved first.
        """
        with ExitStack() as scope:
            if keeping:
                scope.enter_context(keeping.following(self))
            return self._run(preview_every, preview, keeping)

    def _run(
        self, preview_every: int, preview: SamplingSettings | None, keeping: Keeping | None
    ) -> Adapter:
        try:
            for phase, end in zip(self.recipe.phases, self.phase_ends, strict=True):
                if self.step < end and not (keeping and keeping.over):
                    self._run_phase(phase, end - phase.steps, preview_every, preview, keeping)
            if preview_every and self._shown != self.step:
                self._show(preview)
        except BaseException:
            self._save()
            raise
        self._save()  # asked for again, this run answers at once
        return self.adapter()

    @property
    def learned(self) -> Learned:
        """What has been learned so far, to be looked at in the models."""
        return Learned(self.vectors, self.loras)

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
                "prediction": self.backbone.schedule.prediction,
                **({"face_model": judge} if judge else {}),
                **({"blocks": listed(self.blocks)} if self.blocks else {}),
            },
        )

    @torch.no_grad()
    def preview(self, settings: SamplingSettings | None = None) -> Previewed:
        """Draw the composed prompt with what has been learned, and see where its tokens look.

        The picture has the training's size unless the settings say otherwise.
        """
        side = self.recipe.side
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
            "fingerprint": self.keeper.run if self.keeper else "",
            "step": self.step,
            "history": self.history,
            "blocks": self.blocks,
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
        self.blocks = dict(state.get("blocks", {}))  # earlier versions measured none
        with torch.no_grad():
            for name, of in state["tokens"].items():
                for encoder, values in of.items():
                    self.vectors.get(name, encoder).copy_(values)
        self.loras.load_state_dict(state["lora"])
        self._optimizer_state = state["optimizer"]
        self.scaler.load_state_dict(state["scaler"])
        self._take_back(state["chance"])

    def opened(self, phase: Phase) -> AbstractContextManager[Objective]:
        """The objective of a phase, with all that it puts into the models, to look at a step."""
        return self._phase(phase)

    def farewell(self, again: str) -> str:
        """What to tell a user who stopped the run; `again` says how it goes on from its state."""
        if self.keeper is None:
            return f"Stopped after step {self.step} of {self.steps}. It was not to be saved."
        return self.keeper.farewell(self.step, self.steps, again)

    # -- a phase ------------------------------------------------------------------------------

    def _run_phase(
        self,
        phase: Phase,
        first: int,
        preview_every: int,
        preview: SamplingSettings | None,
        keeping: Keeping | None,
    ) -> None:
        if self.step == first:
            self._optimizer_state = None  # that of the phase before, when resumed at its end
        with self._phase(phase) as objective, memory_explained(*_IN_LESS_MEMORY):
            while (at := self.step - first) < phase.steps and not (keeping and keeping.over):
                started = time.perf_counter()
                losses, total, norm = self._step(objective, at)
                seconds = time.perf_counter() - started
                event = Stepped(self.step, self.steps, phase.name, losses, total, norm, seconds)
                self.tell(event)
                if preview_every and self.step % preview_every == 0:
                    self._show(preview)
                if keeping:
                    keeping.stepped(self)
                if self.keeper and self.keeper.due(self.step):
                    self.keeper.save(self.state())

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[Objective]:
        """Everything a phase puts into the models, and takes out again."""
        wanted = needs(phase)
        with ExitStack() as scope:
            groups = {
                **token_groups(self.vectors, FAMILIES[self.backbone.family]),
                **scope.enter_context(self.loras.injected(phase)),
            }
            if self.recipe.checkpointing:
                scope.enter_context(checkpointed(self.backbone.checkpointed_modules()))
            capture = None
            if "attention" in wanted:
                capture = scope.enter_context(
                    refocusing_capture(self.backbone, self.recipe, self.blocks)
                )
            self.vectors.requires_grad_(phase.rates.tokens > 0)
            words = [concept.class_word for concept in self.job.concepts]
            factors = token_factors(self.backbone, words)
            self._optimizer = make_optimizer(self.recipe, phase, groups, factors)
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
                self.materials.dino if "dino" in wanted else None,
                self.loras.off,
            )
        self._optimizer = None

    def _step(self, objective: Objective, at: int) -> tuple[dict[str, float], float, float]:
        """One optimiser step, `at` of its phase, whole or not at all.

        Returns the mean losses by name, the weighted total and the gradient's norm.
        """
        assert self._optimizer is not None
        phase, before, done = objective.phase, self._chance(), self.step
        set_rates(self._optimizer, phase, at)
        try:
            losses, norm = gradients(
                objective,
                lambda: self.materials.batches.rows(phase, self.generator),
                self._optimizer,
                self.scaler,
                at / phase.steps,
                self._check_finite,
            )
            total = losses.pop("total")
            with uninterrupted():  # a signal comes before or after: half of Adam is no step
                self.scaler.step(self._optimizer)
                self.scaler.update()
                self.step += 1
                self.history.append(losses)
        except BaseException:
            if self.step == done:
                self._take_back(before)
            raise
        return losses, total, norm

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

    def _save(self) -> None:
        if self.keeper and self.step:
            self.keeper.save(self.state())


def _ignore(event: Event) -> None:
    if isinstance(event, Warned):
        logger.warning(event.text)
