"""The two-phase loop: phases as data, all tasks in every step, events out, state in and out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..adapter import Adapter
from ..attention import AttentionCapture, captured, cross_attentions, select
from ..backbone import Backbone
from ..checkpointing import checkpointed
from ..config import Phase, Precision
from ..errors import NumericalError, OutOfMemoryError, UnsupportedModelError
from ..faces.embed import Recogniser
from ..lora import InjectedLora, LoraWeights, injected, target_names, text_target_names
from ..prompts import prompt_for
from ..sampling import SamplingSettings, sample_latents
from ..tokens import Prompt, check_new_word
from .events import Event, Listener, Previewed, Resumed, Stepped, Warned
from .job import TrainingJob, generator
from .objective import Losses, Objective
from .optim import make_optimizer, optimizer_class, set_rates
from .prepare import prepare
from .state import load_state, save_state, state_path

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
        recogniser: Recogniser | None = None,
        listener: Listener | None = None,
        state_folder: Path | None = None,
        save_every: int = 200,
        fresh: bool = False,
    ) -> None:
        self.job, self.backbone, self.recipe = job, backbone, job.recipe
        self.recogniser, self.state_folder, self.save_every = recogniser, state_folder, save_every
        self.fresh = fresh
        self.tell: Listener = listener or _ignore
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._scope = ExitStack()
        self._lora_state: dict[str, dict[str, LoraWeights]] = {}
        self._loras: dict[str, InjectedLora] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    def __enter__(self) -> Trainer:
        for text in self.job.check():
            self.tell(Warned(text))
        self._check()
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

        Every `preview_every` steps (0: never) a preview is drawn, without touching the run's
        random numbers. Whatever ends the run early, its state is saved first.
        """
        try:
            for phase, end in zip(self.recipe.phases, self.phase_ends, strict=True):
                if self.step < end:
                    first = end - phase.steps
                    self._run_phase(phase, first, preview_every, preview)
        except BaseException:
            self._save_quietly()
            raise
        self._save_quietly()  # asked for again, this run answers at once
        return self.adapter()

    def adapter(self) -> Adapter:
        """What has been learned so far."""
        lora = {}
        for part, state in self._current_lora().items():
            module = self.backbone.unet if part == "unet" else self.backbone.text_encoders[part]
            names = self.backbone.canonical_names(module)
            lora.update({f"{part}.{names[name]}": weights for name, weights in state.items()})
        return Adapter(
            lora=lora,
            tokens=self.vectors.tensors(),
            family=self.backbone.family,
            recipe=self.recipe,
            concepts=(self.job.subject, self.job.style),
            info={"steps": str(self.step), "seed": str(self.job.seed)},
        )

    @torch.no_grad()
    def preview(self, settings: SamplingSettings | None = None) -> Previewed:
        """Draw the composed prompt with what has been learned so far, while a run is on.

        The picture has the training's size unless the settings say otherwise.
        """
        side = self.recipe.resolution
        settings = settings or SamplingSettings(steps=20, width=side, height=side)
        prompt = prompt_for((self.job.subject, self.job.style), self.recipe.prompts)
        latents = sample_latents(self.backbone, prompt, self.vectors, settings, seed=self.job.seed)
        images = self.backbone.decode_fast(latents).float().clamp(0, 1)
        return Previewed(self.step, prompt, images)

    def state(self) -> dict[str, Any]:
        """Everything that `resume` needs, as plain data and CPU tensors."""
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "history": self.history,
            "tokens": self.vectors.tensors(),
            "lora": {
                part: {n: (w.down.cpu(), w.up.cpu(), w.alpha) for n, w in state.items()}
                for part, state in self._current_lora().items()
            },
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
        self._lora_state = {
            part: {n: LoraWeights(*weights) for n, weights in of.items()}
            for part, of in state["lora"].items()
        }
        self._optimizer_state = state["optimizer"]
        self.scaler.load_state_dict(state["scaler"])
        self._restore_draws(state["draws"])

    # -- preparation --------------------------------------------------------------------------

    def _check(self) -> None:
        if not cross_attentions(self.backbone.unet):
            raise UnsupportedModelError(
                "The base model's UNet has no cross-attention to train; MagiCapture runs on "
                "Stable Diffusion 1.x and 2.x."
            )
        for concept in (self.job.subject, self.job.style):
            check_new_word(concept, self.backbone.text_encoders, self.backbone.word_ids)
        optimizer_class(self.recipe.optimizer)  # its package may be missing

    def _prepare(self) -> None:
        materials = prepare(self.job, self.backbone, self.recogniser, self.tell)
        self.vectors, self.draws = materials.vectors, materials.draws
        self.identity, self.fingerprint = materials.identity, materials.fingerprint
        self.generator = generator(self.job.seed, "steps")
        fp16 = self.backbone.dtype == torch.float16
        self.scaler = GradScaler(self.backbone.device.type, enabled=fp16)
        self._probe()
        known = self.state_file is not None and not self.fresh
        if known and (state := load_state(self.state_file, self.fingerprint)):  # type: ignore[arg-type]
            self.resume(state)
            self.tell(Resumed(self.step, self.steps))

    @torch.no_grad()
    def _probe(self) -> None:
        """One pass before step 1, so that a model or setting that cannot work is found now."""
        backbone, job = self.backbone, self.job
        side = self.recipe.resolution // backbone.downscale
        shape = (1, backbone.latent_channels, side, side)
        latents = torch.randn(shape, generator=generator(job.seed, "probe")).to(backbone.device)
        prompt = Prompt(prompt_for((job.subject, job.style), self.recipe.prompts))
        conditioning = backbone.encode_prompts([prompt], self.vectors)
        timestep = torch.full((1,), len(backbone.schedule) - 1, device=backbone.device)
        refocused = self.recipe.uses("attention")
        with self._captured() if refocused else nullcontext() as capture:
            with capture.recording() if capture else nullcontext():
                output = backbone.predict(latents, timestep, conditioning)
            if capture:
                capture.maps(conditioning.positions, (side, side))
        if not output.isfinite().all():
            raise NumericalError(
                f"The base model returns NaN or infinity in {output.dtype} before any training. "
                "Train in bf16 or fp32, or use another checkpoint."
            )

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
                    self.tell(self.preview(preview))
                if self.step % self.save_every == 0:
                    self._save_quietly()

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[Objective]:
        """Everything a phase puts into the models, and takes out again."""
        with ExitStack() as scope:
            for part, names in self._lora_targets(phase).items():
                scope.enter_context(self._injected(part, names))
            if self.recipe.checkpointing:
                scope.enter_context(checkpointed(self.backbone.checkpointed_modules()))
            capture = None
            if phase.weights.attention:
                capture = scope.enter_context(self._captured())
            groups = self._groups(phase)
            for parameter in self.vectors.parameters():
                parameter.requires_grad_("tokens" in groups)
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

    def _lora_targets(self, phase: Phase) -> dict[str, list[str]]:
        """Names of the modules that carry a LoRA, by part: now trained, or trained before."""
        targets = {}
        if phase.rates.unet or "unet" in self._lora_state:
            targets["unet"] = target_names(self.backbone.unet, self.recipe.lora.targets)
        for key, encoder in self.backbone.text_encoders.items():
            if phase.rates.text_encoder or key in self._lora_state:
                targets[key] = text_target_names(encoder)
        return targets

    @contextmanager
    def _injected(self, part: str, names: Sequence[str]) -> Iterator[None]:
        module = self.backbone.unet if part == "unet" else self.backbone.text_encoders[part]
        lora, seed = self.recipe.lora, generator(self.job.seed, "lora", part).initial_seed()
        with injected(module, names, lora.rank, lora.rank * lora.scale, seed=seed) as handle:
            if part in self._lora_state:
                handle.load(self._lora_state[part])
            self._loras[part] = handle
            try:
                yield
            finally:
                self._lora_state[part] = handle.state()
                del self._loras[part]

    def _captured(self) -> AbstractContextManager[AttentionCapture]:
        unet, refocus = self.backbone.unet, self.recipe.refocus
        return captured(unet, select(unet, middle=refocus.middle), factors=refocus.factors)

    def _groups(self, phase: Phase) -> dict[str, list[nn.Parameter]]:
        loras = self._loras
        groups = {
            "tokens": list(self.vectors.parameters()),
            "unet": loras["unet"].parameters() if "unet" in loras else [],
            "text_encoder": [
                p for part, lora in loras.items() if part != "unet" for p in lora.parameters()
            ],
        }
        return {n: members for n, members in groups.items() if members and getattr(phase.rates, n)}

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

    def _current_lora(self) -> dict[str, dict[str, LoraWeights]]:
        return self._lora_state | {part: lora.state() for part, lora in self._loras.items()}

    def _draws_state(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "source": self.draws.source.state_dict(),
            "reference": self.draws.reference.state_dict(),
        }

    def _restore_draws(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.draws.source.load_state_dict(state["source"])
        self.draws.reference.load_state_dict(state["reference"])

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
