"""What follows a run step by step, and what it is shown of what has been learned."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..tokens import TokenVectors
from .loras import Loras

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass(frozen=True, eq=False)
class Learned:
    """Token vectors and the LoRAs that go with them, of any step of a run.

    `loras.shown()` puts them into the models, and within it `loras.off()` takes them out.
    """

    vectors: TokenVectors
    loras: Loras


class Keeping(Protocol):
    """Follows a run, such as `checkpoints.Checkpoints`; touches none of its random numbers."""

    def following(self, trainer: Trainer, /) -> AbstractContextManager[None]:
        """A scope around the run; entered when the trainer is ready, or resumed."""

    def stepped(self, trainer: Trainer, /) -> None:
        """Called after each step, before its state is saved."""

    @property
    def over(self) -> bool:
        """Whether the run should end here."""
