"""One training loop for every network: it saves as it goes, and picks up where it stopped."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

LossOf = Callable[[int, torch.Generator], dict[str, Tensor]]
"""Losses by name of a step, drawn with the step's own generator; they are summed."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast a network is trained."""

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.25  # share of the steps at the end over which the rate falls to a tenth
    ema: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0
    save_seconds: float = 150.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a ramp, a plateau, a fall to a tenth."""
        ramp = min(1.0, (step + 1) / max(self.warmup, 1))
        left = (self.steps - step) / max(self.decay * self.steps, 1.0)
        return self.rate * ramp * (0.1 + 0.9 * min(1.0, max(left, 0.0)))


class Trainer:
    """A network in training: weights, their moving average and the optimiser's state."""

    def __init__(self, name: str, model: nn.Module, plan: Plan, folder: Path) -> None:
        self.name, self.model, self.plan, self.folder = name, model, plan, folder
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            plan.rate,
            betas=(0.9, 0.98),
            weight_decay=plan.weight_decay,
            fused=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if self._file.exists():
            self._resume()

    @property
    def _file(self) -> Path:
        return state_file(self.folder, self.name)

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.plan.steps

    def run(self, loss_of: LossOf, until: float | None = None) -> None:
        """Trains to the plan's end or to the clock time `until` (seconds since the epoch)."""
        self.model.train()
        seen: dict[str, float] = {}
        started = saved = time.monotonic()
        since = 0
        while not self.done and (until is None or time.time() < until):
            losses = self._advance(loss_of)
            since += 1
            for key, value in losses.items():
                seen[key] = seen.get(key, 0.0) + value
            if since >= 100 or self.done:
                self._note({key: value / since for key, value in seen.items()})
                seen, since = {}, 0
            if time.monotonic() - saved > self.plan.save_seconds:
                self.seconds += time.monotonic() - started
                started = saved = time.monotonic()
                self.save()
        self.seconds += time.monotonic() - started
        self.save()

    def _advance(self, loss_of: LossOf) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step)
        losses = loss_of(self.step, generator)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"{self.name}: the loss is {total.item()} at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return {key: float(value.detach()) for key, value in losses.items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        now = self.model.state_dict()
        floats = [key for key, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[key] for key in floats], [now[key] for key in floats], 1 - keep
        )
        for key in now.keys() - floats:
            self.average[key].copy_(now[key])

    def _note(self, losses: dict[str, float]) -> None:
        self.history.append({"step": self.step, **losses})
        text = " ".join(f"{key} {value:.4f}" for key, value in losses.items())
        log.info("%s step %d of %d: %s", self.name, self.step, self.plan.steps, text)

    def save(self) -> None:
        """Writes weights, average and optimiser state, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{k}.{name}": state[k] for k in ("exp_avg", "exp_avg_sq") if k in state}
        about = {"step": self.step, "seconds": self.seconds, "plan": asdict(self.plan)}
        about["history"] = self.history
        write_tensors(self._file, tensors, {"about": json.dumps(about)})
        log.info("%s saved at step %d after %.0f s", self.name, self.step, self.seconds)

    def _resume(self) -> None:
        from safetensors import safe_open

        with safe_open(self._file, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = load_file(self._file)
        self.step, self.seconds = about["step"], about["seconds"]
        self.history = about["history"]
        self.model.load_state_dict(_under(tensors, "model."))
        device = next(self.model.parameters()).device
        self.average = {k: v.to(device) for k, v in _under(tensors, "average.").items()}
        for name, parameter in self.model.named_parameters():
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(device),
                }
        log.info("%s resumes at step %d", self.name, self.step)


def state_file(folder: Path, name: str) -> Path:
    """Where a network's training state is kept."""
    return folder / f"{name}.state.safetensors"


def averaged(folder: Path, name: str) -> dict[str, Tensor]:
    """The moving average of a network's weights as last saved; an error if never trained."""
    file = state_file(folder, name)
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: train the stage that makes {name} first")
    return _under(load_file(file), "average.")


def write_tensors(file: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all."""
    partial = file.with_suffix(".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, about)
    os.replace(partial, file)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
