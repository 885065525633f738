"""The settings of MagicFace, and which of its two mechanisms a step uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from ..config import Checked, setting

Stage = Literal["layout", "details", "look", "off"]
"""layout: all references for every pixel (RSA); details: each in its own region (RBA); look: no
reference acts, but regions are found."""


@dataclass(frozen=True)
class MagicFaceSettings(Checked):
    """How references act while a picture is sampled; shares are those of `share_at`."""

    switch: float = setting(
        0.4,
        "Up to this share of the way from noise to picture every pixel looks at all references, "
        "which lays the picture out; from then on each reference is seen by its own region alone. "
        "Counted by noise level, so that it means the same with every scheduler.",
        low=0,
        high=1,
        release=0.4,
    )
    stop: float = setting(
        1.0, "After this share of the way the references are left out.", low=0, high=1
    )
    others: float = setting(
        0.9,
        "Weight of the words that belong to no concept when pixels are assigned to words; lower "
        "gives larger regions.",
        low=0.05,
        high=2,
    )
    to_foreground: bool = setting(
        False,
        "Cut the regions to the foreground that the negative prompt's attention shows. Leave it "
        "off for backgrounds as concepts, and where a face's middle is taken for background.",
        release=True,
    )
    region_guidance: bool = setting(
        True,
        "Scale the guidance of each region to the foreground's, so that no concept is drawn "
        "fainter than another.",
        release=True,
    )
    reference_seed: int = setting(
        0, "Seed of the noise on the references, fresh at every noise level.", low=0, high=2**31
    )

    @property
    def only_layout(self) -> bool:
        """Whether no step sees the references region by region."""
        return self.switch >= min(self.stop, 1)

    def stage(self, share: float) -> Stage:
        """The mechanism of a step by its `share_at`: of 50 even steps, 0-20 lay out."""
        if share >= self.stop:
            return "off"
        return "layout" if share <= self.switch and self.switch > 0 else "details"


def share_at(sigma: float) -> float:
    """How much of a sampling is done at a noise level, 0 to 1, whatever the scheduler.

    sigma: sqrt((1 - abar) / abar). Counted by the release's 50 even steps over Stable Diffusion's
    schedule: their first, at t = 981, is 0; each is 20 lower and 0.02 further.
    """
    level = math.log(max(sigma, 1e-8))
    timestep = float(np.interp(level, _log_sigmas(), np.arange(1000)))
    return max(round((981 - timestep) / 1000, 4), 0.0)


@cache
def _log_sigmas() -> np.ndarray:
    """ln sigma at each timestep of Stable Diffusion's schedule (1000,), rising."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    return 0.5 * np.log((1 - abar) / abar)
