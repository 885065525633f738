"""Reconstruction on the rows of one task: L_s, L_r, L_c (P eq. 4 to 6), the prior's and words'."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..config import Recipe, Task
from ..loss import LOSSES, Loss, Need
from .batch import Batch


class Reconstruction(Loss):
    """|| M * (target - prediction) ||^2 on one task's rows (`equations.masked_reconstruction`)."""

    task: Task

    def tasks(self, recipe: Recipe) -> tuple[Task, ...]:
        return (self.task,)

    def weight(self, batch: Batch) -> float:
        """The phase's weight, multiplied in its first half for the tasks that it boosts."""
        boosted = self.task in batch.phase.boosted and batch.progress < 0.5
        return super().weight(batch) * (batch.phase.boost if boosted else 1.0)

    def __call__(self, batch: Batch) -> Tensor:
        own = [i for i, row in enumerate(batch.rows) if row.reconstruct and row.task == self.task]
        return batch.errors[own]


class Source(Reconstruction):
    """L_s: the person's photos, inside the face."""

    name = task = "source"
    symbol, colour, default = "L_s", "#3b7dd8", 1.0
    help = "Masked reconstruction of the person's photos, L_s."


class Style(Reconstruction):
    """L_r: the style's portraits, outside the face."""

    name = task = "style"
    symbol, colour, default = "L_r", "#d8843b", 1.0
    help = "Masked reconstruction of the style's portraits, L_r."


class Composed(Reconstruction):
    """L_c: the composed prompt on its pseudo-label."""

    name = task = "composed"
    symbol, colour = "L_c", "#3ba55d"
    help = "Composed prompt (this person in this style) on its pseudo-label, L_c."


class Prior(Reconstruction):
    """Prior preservation (DreamBooth): what the base model makes of the class word is kept."""

    name = task = "prior"
    symbol, colour = "L_prior", "#7a7a7a"
    help = "Prior preservation on class images."
    needs: ClassVar[frozenset[Need]] = frozenset({"class images"})


class Kept(Reconstruction):
    """Something of the base model is kept, which is looked at once in `every` steps."""

    def weight(self, batch: Batch) -> float:
        """The phase's weight, as many times as steps go by without a look."""
        return super().weight(batch) * int(getattr(batch.recipe, self.name).every)


class Words(Kept):
    """Further words keep their meaning: what they do to the model is what they do to its base.

    || e(z,"composed, w") - sg e(z,"composed") - (e0(z,"person, w") - e0(z,"person")) ||^2, where
    e0 is the model without the LoRA; or || e(z,"person, w") - e0(z,"person, w") ||^2, which other
    trainers call differential output preservation (`WordsSettings.kept`).
    """

    name = task = "words"
    symbol, colour = "L_words", "#2aa5a0"
    help = "Words kept: further words in a prompt do what they do in the base model."


class Unconditional(Kept):
    """The empty prompt's answer is kept: || e(z,"") - e0(z,"") ||^2, e0 the model without the LoRA.

    Guidance goes from that answer to the prompt's. A LoRA that draws the person there as well has
    guidance lead away from the person.
    """

    name = task = "unconditional"
    symbol, colour = "L_uncond", "#8a5fb0"
    help = "Empty prompt kept: guidance leads away from the base model's answer, not the person."


for _loss in (Source(), Style(), Composed(), Prior(), Words(), Unconditional()):
    LOSSES.add(_loss)
