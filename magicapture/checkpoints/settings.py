"""Which steps of a run are kept, how they are scored, and which of them is marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import Checked, Recipe, setting

Choice = Literal["both", "identity", "style", "last"]


@dataclass(frozen=True)
class KeepSettings(Checked):
    """How adapters of several steps are kept and compared."""

    keep: int = setting(
        5,
        "How many steps' adapters to keep, at equal shares of the last phase; its end is one.",
        low=1,
        high=100,
    )
    keep_every: int = setting(
        0,
        "Keep one every so many steps instead, from the first phase on, and the last one; 0: at "
        "the shares.",
        low=0,
        high=1_000_000,
    )
    keep_seeds: int = setting(
        4,
        "Pictures that each is scored on, of the same prompt and seeds for all; more of them tell "
        "close ones apart.",
        low=1,
        high=64,
    )
    choose: Choice = setting(
        "both",
        "Which one is marked as the best: the one with the highest mean of both (harmonic mean of "
        "identity and style), identity or style over its pictures, a copy of a training picture "
        "counting 0, and of equals the latest; or simply the last.",
    )
    stop_early: bool = setting(
        False,
        "End the training when two kept steps in a row are worse than the best before them.",
    )
    keep_guidance: float | None = setting(
        None,
        "Guidance that the pictures are drawn with; empty is what the base model was made for.",
        low=1,
        high=30,
    )

    def steps(self, recipe: Recipe) -> list[int]:
        """The steps of a recipe's run whose adapters are kept, counted from 1, the last included.

        Fewer where the last phase has fewer steps than are to be kept.
        """
        whole = recipe.steps
        if self.keep_every:
            return [*range(self.keep_every, whole, self.keep_every), whole]
        last = next(phase.steps for phase in reversed(recipe.phases) if phase.steps)
        shares = (round(last * number / self.keep) for number in range(1, self.keep + 1))
        return sorted({whole - last + done for done in shares if done})
