"""The settings of Attention Refocusing while a picture is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import Checked, setting

Measure = Literal["share", "minmax", "max", "none"]


@dataclass(frozen=True)
class RefocusGuidance(Checked):
    """How the learned tokens are held to their regions; both strengths 0 change nothing."""

    bias: float = setting(
        4.0,
        "How much the attention to a token is lowered outside its region, before the softmax: 0 "
        "is not at all, 4 divides it by 55. Costs next to nothing.",
        low=0,
        high=30,
    )
    gradient: float = setting(
        0.0,
        "How far the latents move at once to bring the attention outside the region down, as a "
        "share of their own spread; 0 is not at all, 0.02 is a usual step, 0.05 a strong one.",
        low=0,
        high=1,
    )
    start: float = setting(
        0.0, "Where the window of the gradient begins, as a share of the steps.", low=0, high=1
    )
    end: float = setting(
        0.4, "Where the window of the gradient ends, as a share of the steps.", low=0, high=1
    )
    iterations: int = setting(1, "Moves at each step of the window.", low=1, high=20)
    threshold: float = setting(
        0.1,
        "The loss (0 to 1) at which the gradient has done enough: nothing moves below it.",
        low=0,
        high=1,
    )
    measure: Measure = setting(
        "share",
        "The gradient's loss: share (of a token's attention, how much lies outside its region), or "
        "the squares of training's loss under its scaling, minmax, max or none.",
        paper="minmax",
        release="minmax",
    )
    factors: tuple[int, ...] | None = setting(
        None,
        "Layers that the gradient and the search for regions look at, by how many latent cells a "
        "side one query covers: 4 is 16x16 for SD 1.5 at 512 px. None: maps of 8x8 to 32x32.",
        low=1,
        release=(4,),
    )
    smoothing: float = setting(
        1.0,
        "How much a map is blurred before a region is read off it: a Gaussian's standard "
        "deviation, in cells of the map.",
        low=0,
        high=16,
    )
    cut: float = setting(
        0.5,
        "Where a map becomes a region: from this share of the way from its lowest to its highest "
        "value on.",
        low=0.01,
        high=0.99,
    )
    save_memory: bool = setting(
        False, "The gradient recomputes activations: slower, less memory, the same result."
    )

    @property
    def acts(self) -> bool:
        """Whether any strength is above 0."""
        return self.bias > 0 or self.gradient > 0

    def moves_at(self, share: float) -> bool:
        """Whether the gradient acts at this share of the steps, 0 at the first of them."""
        return self.gradient > 0 and self.start <= share < self.end
