"""The forward process and its algebra: one 2x2 mix for epsilon, v and flow.

z_t = a z + b eps,  p = c z + d eps,  det = a d - b c

a and b belong to the noise level t, c and d to what the network predicts; noised latents, targets
and the estimates of z and eps all follow from them. An error of p is one of b / det in z and one
of a / det in eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

Prediction = Literal["epsilon", "v_prediction", "flow"]
Spread = Literal["uniform", "logit-normal"]

SIDE = 512
"""Side in pixels of the pictures that a recipe's signal-to-noise ratios (SNR) are stated for."""

_TINY = torch.finfo(torch.float32).tiny
_LEAST = 2**-12
"""The least a that an estimate of z from epsilon is divided by, as in diffusers."""

_TYPICAL = 1000

_PREDICTED: dict[Prediction, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "epsilon": lambda a, b: (torch.zeros_like(a), torch.ones_like(b), a.clamp_min(_LEAST)),
    "v_prediction": lambda a, b: (-b, a, torch.ones_like(a)),
    "flow": lambda a, b: (-torch.ones_like(a), torch.ones_like(b), torch.ones_like(a)),
}
"""c, d and the determinant, from a and b; v's with a^2 + b^2 = 1, flow's with a + b = 1."""


def at_side(snr: float, side: int) -> float:
    """The SNR at which pictures of `side` px show what those of 512 px show at `snr`.

    Noise averages out over four times the cells at twice the side, so a quarter does there.
    """
    return snr * (SIDE / side) ** 2


class Levels(Protocol):
    """The noise levels t of a process, from clean to pure noise, as data."""

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a^2 and b^2 (B,), the powers of signal and noise at levels t (B,); 32 bits or more."""

    def at(self, share: float) -> float:
        """The level at a share of the range: 0 is the cleanest, 1 the noisiest."""

    def limit(self, min_snr: float) -> float:
        """The end of the levels whose SNR is at least this; they are those below it."""

    def draw(self, generator: Generator, *, share: float = 1.0, min_snr: float = 0.0) -> float:
        """A random level for training, in this share of the range and of this SNR at least."""

    def typical(self) -> Tensor:
        """Levels (n,) that stand for those that are drawn, each equally likely."""

    def nearest(self, t: Tensor) -> Tensor:
        """Levels that the network knows, for those of a sampler, which may lie between them."""

    def sigma(self, t: float) -> float:
        """b / a at a level, which may lie between two that the network knows."""


@dataclass(frozen=True, eq=False)
class DiscreteLevels:
    """Whole timesteps t = 0..T-1 of a process with a^2 = abar_t and b^2 = 1 - abar_t.

    alphas_cumprod: abar (T,) float32, falling from almost 1; the last may be 0 (zero terminal
    SNR). Training draws t uniformly.
    """

    alphas_cumprod: Tensor

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod.to(device=t.device, dtype=torch.float32)[t]
        return abar, 1 - abar

    def at(self, share: float) -> int:
        return round(share * (len(self) - 1))

    def limit(self, min_snr: float) -> int:
        signal, noise = self.powers(self.typical())
        return int((signal / noise >= min_snr).sum())

    def draw(self, generator: Generator, *, share: float = 1.0, min_snr: float = 0.0) -> int:
        """As `Levels`; the cleanest where no level has such an SNR."""
        end = min(round(share * len(self)), self.limit(min_snr))
        return int(torch.randint(max(end, 1), (), generator=generator))

    def typical(self) -> Tensor:
        return torch.arange(len(self))

    def nearest(self, t: Tensor) -> Tensor:
        return t.round().long()

    def sigma(self, t: float) -> float:
        below, above = math.floor(t), math.ceil(t)
        abar = self.alphas_cumprod[[below, above]].double().clamp_min(_LEAST**2)
        logs = 0.5 * torch.log((1 - abar) / abar)
        return float(torch.exp(logs[0] + (t - below) * (logs[1] - logs[0])))


@dataclass(frozen=True, eq=False)
class FlowLevels:
    """Levels t in 0..1 of a straight flow, a = 1 - t and b = t; t is what samplers call sigma.

    Training draws u uniformly or as the sigmoid of a standard normal number (logit-normal,
    arXiv 2403.03206), and t = shift u / (1 + (shift - 1) u).
    """

    spread: Spread = "logit-normal"
    shift: float = 1.0

    @property
    def shift_of_draws(self) -> float:
        """The shift of the levels that training draws."""
        return self.shift

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Raises TypeError for whole numbers, which are timesteps of a process with many."""
        if not t.is_floating_point():
            raise TypeError(f"expected levels of a flow, 0.0 to 1.0; got {t.dtype}")
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        return (1 - t).square(), t.square()

    def at(self, share: float) -> float:
        return float(share)

    def limit(self, min_snr: float) -> float:
        return 1 / (1 + math.sqrt(min_snr))

    def draw(self, generator: Generator, *, share: float = 1.0, min_snr: float = 0.0) -> float:
        # By the inverse of the distribution, so that one number is drawn whatever the limit.
        end = self._chance(torch.tensor(min(share, self.limit(min_snr))).double())
        u = torch.rand((), generator=generator, dtype=torch.float64).clamp_min(2**-53)
        return float(self._level(u * end))

    def typical(self) -> Tensor:
        return self._level((torch.arange(_TYPICAL).double() + 0.5) / _TYPICAL).float()

    def nearest(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: float) -> float:
        return t / max(1 - t, _LEAST)

    def _level(self, chance: Tensor) -> Tensor:
        """The level below which a draw falls with this chance."""
        u = chance
        if self.spread == "logit-normal":
            u = torch.special.ndtri(chance).sigmoid()
        shift = self.shift_of_draws
        return shift * u / (1 + (shift - 1) * u)

    def _chance(self, level: Tensor) -> Tensor:
        """The chance that a draw falls below a level."""
        u = level / (self.shift_of_draws - (self.shift_of_draws - 1) * level)
        return torch.special.ndtr(u.logit()) if self.spread == "logit-normal" else u


@dataclass(frozen=True)
class ApartLevels(FlowLevels):
    """Those of a flow that is sampled at one shift and trained at another.

    drawn: the shift in training.
    """

    drawn: float = 1.0

    @property
    def shift_of_draws(self) -> float:
        return self.drawn


def flow_levels(shift: float, drawn: float | None = None) -> FlowLevels:
    """The levels of a flow that is sampled at a shift; drawn: the shift in training, if another."""
    return FlowLevels(shift=shift) if drawn is None else ApartLevels(shift=shift, drawn=drawn)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The forward process q(z_t | z), and the way between the network's output p, eps and z.

    Latents are (B,C,h,w), timesteps (B,) levels of `levels`. At zero terminal SNR nothing is
    divided by zero: v and flow give z as everywhere, while epsilon says nothing of z there; its
    estimate is finite, and an error of p enters it 4096-fold.
    """

    levels: Levels
    prediction: Prediction = "epsilon"

    def mix(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, shaped (B,1,1,1) to multiply `like`."""
        powers = self.levels.powers(timesteps.to(like.device))
        a, b = (power.reshape(-1, *[1] * (like.ndim - 1)).sqrt().to(like.dtype) for power in powers)
        return a, b

    def add_noise(self, latents: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = a z + b eps."""
        a, b = self.mix(timesteps, latents)
        return a * latents + b * epsilon

    def target(self, latents: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to predict: eps, a eps - b z (v), or eps - z (flow)."""
        c, d, _ = _PREDICTED[self.prediction](*self.mix(timesteps, latents))
        return c * latents + d * epsilon

    def to_x0(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The estimate of z, (d z_t - b p) / det; for epsilon this is Tweedie's."""
        a, b = self.mix(timesteps, noisy)
        _, d, det = _PREDICTED[self.prediction](a, b)
        return (d * noisy - b * prediction) / det

    def to_epsilon(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The estimate of eps, (a p - c z_t) / det."""
        if self.prediction == "epsilon":
            return prediction
        a, b = self.mix(timesteps, noisy)
        c, _, det = _PREDICTED[self.prediction](a, b)
        return (a * prediction - c * noisy) / det

    def snr(self, timesteps: Tensor) -> Tensor:
        """(a / b)^2 (B,), finite also at a clean level."""
        signal, noise = self.levels.powers(timesteps)
        return signal / noise.clamp_min(_TINY)

    def signal(self, timesteps: Tensor) -> Tensor:
        """SNR / (1 + SNR) (B,) in 0..1, the signal's share of the power; abar_t of a timestep."""
        signal, noise = self.levels.powers(timesteps)
        return signal / (signal + noise)

    def error_ratio(self, timesteps: Tensor) -> Tensor:
        """(det / a)^2 (B,): the squared error of p that goes with one of 1 in eps; finite."""
        snr = self.snr(timesteps).clamp_min(_TINY)
        if self.prediction == "v_prediction":
            return 1 + 1 / snr
        if self.prediction == "flow":
            return (1 + snr.rsqrt()).square()
        return torch.ones_like(snr)


def stable_diffusion_snr() -> Tensor:
    """The SNR (1000,) float64 of each timestep of Stable Diffusion 1.x and 2.x."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    abar = (1 - betas).cumprod(0)
    return abar / (1 - abar)
