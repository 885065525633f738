"""One step of the training: rows -> batch -> predict -> losses -> gradients.

Every loss is a sum over rows, so a batch of all tasks and one task after another have the same
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..attention import AttentionCapture
from ..backbone import Backbone
from ..config import Phase, Recipe
from ..losses import LOSSES, Batch, DinoTerm, IdentityTerm, Loss, Row, Step
from ..losses.equations import timestep_weights
from ..tokens import Concept, TokenVectors


@dataclass
class Losses:
    """The weighted total, with its graph, and the unweighted losses summed by name."""

    total: Tensor
    by_name: dict[str, Tensor] = field(default_factory=dict)

    def add(self, loss: Loss, values: Tensor, weight: float) -> None:
        """Add a loss's value for each of its rows."""
        for value in values:
            self.total = self.total + weight * value
            self.by_name[loss.name] = self.by_name.get(loss.name, 0) + value.detach()


@dataclass(frozen=True)
class Objective:
    """The losses of a phase (P, "Two phases"): L = sum of weights times losses over the rows."""

    backbone: Backbone
    recipe: Recipe
    phase: Phase
    subject: Concept
    style: Concept
    vectors: TokenVectors
    capture: AttentionCapture | None = None
    identity: IdentityTerm | None = None
    dino: DinoTerm | None = None
    without_lora: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, rows: Sequence[Row], progress: float = 0.0) -> Losses:
        """The losses of some rows in one batch; progress is the share of the phase done."""
        batch = self.predict(rows, progress)
        losses = Losses(torch.zeros((), device=self.backbone.device))
        for loss in self.losses(once=False):
            losses.add(loss, loss(batch), loss.weight(batch))
        return losses

    def once(self, progress: float = 0.0) -> Losses | None:
        """The losses that look at the token vectors alone; None where there is none."""
        step = Step(self.recipe, self.phase, self.subject, self.style, self.vectors, progress)
        losses = Losses(torch.zeros((), device=self.backbone.device))
        for loss in self.losses(once=True):
            losses.add(loss, loss(step)[None], loss.weight(step))
        return losses if losses.by_name else None

    def losses(self, *, once: bool) -> Iterator[Loss]:
        """The losses that have a weight in this phase."""
        for loss in LOSSES.values():
            if self.phase.weights[loss.name] and loss.once == once:
                yield loss

    def predict(self, rows: Sequence[Row], progress: float) -> Batch:
        """Noise the rows and run the UNet on them, its attention recorded where a loss reads it."""
        schedule, device = self.backbone.schedule, self.backbone.device
        latents = torch.cat([row.latents for row in rows]).to(device)
        epsilon = torch.cat([row.epsilon for row in rows]).to(latents)
        timesteps = torch.tensor([row.timestep for row in rows], device=device)
        noisy = schedule.add_noise(latents, epsilon, timesteps)
        conditioning = self.backbone.encode_prompts([row.prompt for row in rows], self.vectors)
        with self.capture.recording() if self.capture else nullcontext():
            prediction = self.backbone.predict(noisy, timesteps, conditioning).float()
        return Batch(
            self.recipe,
            self.phase,
            self.subject,
            self.style,
            self.vectors,
            progress,
            rows,
            schedule,
            conditioning,
            noisy,
            timesteps,
            prediction,
            self._with_answers(
                schedule.target(latents, epsilon, timesteps), rows, noisy, timesteps
            ),
            self._noise_weights(rows),
            self.capture,
            self.identity,
            self.dino,
        )

    @torch.no_grad()
    def _with_answers(
        self, target: Tensor, rows: Sequence[Row], noisy: Tensor, timesteps: Tensor
    ) -> Tensor:
        """The targets (B,C,h,w); of a row that has answers their signed sum takes its place."""
        sums: dict[int, Tensor] = {}
        for lora in (True, False):
            asked = [(i, a) for i, row in enumerate(rows) for a in row.answers if a.lora == lora]
            if not asked:
                continue
            places = [place for place, _ in asked]
            with nullcontext() if lora else self.without_lora():
                prompts = [answer.prompt for _, answer in asked]
                conditioning = self.backbone.encode_prompts(prompts, self.vectors)
                said = self.backbone.predict(noisy[places], timesteps[places], conditioning)
            for (place, answer), values in zip(asked, said.float(), strict=True):
                sums[place] = sums.get(place, 0) + answer.sign * values
        return torch.stack([sums.get(i, own) for i, own in enumerate(target)]) if sums else target

    def _noise_weights(self, rows: Sequence[Row]) -> Tensor:
        timesteps = torch.tensor([row.timestep for row in rows])
        return timestep_weights(self.backbone.schedule, timesteps, self.recipe.weighting)


def gradients(
    objective: Objective,
    next_rows: Callable[[], list[Row]],
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    progress: float,
    check: Callable[[str, float, dict[str, float]], None],
) -> tuple[dict[str, float], float]:
    """The clipped gradients of a step; the mean losses by name with "total", and their norm.

    next_rows: the rows of one batch; `recipe.accumulation` batches make the step. progress: the
    share of the phase done. check: raises for a loss or a norm that is not finite; nothing is
    changed then.
    """
    recipe, parts = objective.recipe, []
    optimizer.zero_grad(set_to_none=True)
    for _ in range(recipe.accumulation):
        rows = next_rows()
        for chunk in [[row] for row in rows] if recipe.batching == "in_turn" else [rows]:
            parts.append(objective(chunk, progress))
            if parts[-1].total.requires_grad:  # a row above T' may have no loss at all
                scaler.scale(parts[-1].total / recipe.accumulation).backward()
        if once := objective.once(progress):
            parts.append(once)
            scaler.scale(once.total / recipe.accumulation).backward()
    losses = _mean(parts, recipe.accumulation)
    check("loss", losses["total"], losses)
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, objective.phase.max_grad_norm or math.inf))
    if not scaler.is_enabled():  # the scaler skips such a step and lowers its scale
        check("gradient's norm", norm, losses)
    return losses, norm


def _mean(parts: Sequence[Losses], accumulation: int) -> dict[str, float]:
    """The losses by name and "total", summed over rows, averaged over batches; one transfer."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, value in {**part.by_name, "total": part.total.detach()}.items():
            sums[name] = sums[name] + value if name in sums else value
    values = torch.stack(list(sums.values())).tolist()
    return {name: value / accumulation for name, value in zip(sums, values, strict=True)}
