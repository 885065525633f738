"""What a training run tells its caller; it prints and draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..refocusing import TokenMap, mean_leakage


@dataclass(frozen=True)
class Prepared:
    """Part of the work before step 1 is done, such as encoding photos."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know, though training goes on."""

    text: str


@dataclass(frozen=True)
class Resumed:
    """A saved state of this very run was found; it goes on after `step` of `steps`."""

    step: int
    steps: int


@dataclass(frozen=True)
class Stepped:
    """One optimiser step is done.

    step counts from 1 over all phases, of `steps`; losses are unweighted, by name, and hold only
    what this step computed; seconds is the step's own duration.
    """

    step: int
    steps: int
    phase: str
    losses: Mapping[str, float]
    total: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True)
class Previewed:
    """Pictures (B,3,H,W) of the composed prompt after `step` steps.

    token_maps: where its tokens look in one of the portraits, always the same.
    """

    step: int
    prompt: str
    images: Tensor
    token_maps: Sequence[TokenMap] = ()

    @property
    def leakages(self) -> dict[str, float]:
        """The share of each token's attention outside its region, by name, where it is known."""
        return mean_leakage(self.token_maps)


@dataclass(frozen=True)
class Scored:
    """The adapter after `step` steps is kept, and its pictures are scored.

    scores: means by column, as `checkpoints.Record` has them. best: the step that is marked so far.
    """

    step: int
    scores: Mapping[str, float]
    best: int


Event = Prepared | Warned | Resumed | Stepped | Previewed | Scored
Listener = Callable[[Event], None]
