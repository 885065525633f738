"""Composed learning of a thing (P, supplement): DINO's view of x0 beside the source and the style.

The composed rows are the thing's own photos, noised, under the composed prompt: where a thing is
and what it is made of is asked of the source, how the whole looks of the style's pictures.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..config import Recipe, Task
from ..loss import LOSSES, Loss, Need
from .batch import Batch, Resemblance
from .equations import appearance, patch_contrast, self_similarity


class Dino(Loss):
    """A distance on the composed rows that are clean enough to show the thing."""

    needs: ClassVar[frozenset[Need]] = frozenset({"dino"})

    def tasks(self, recipe: Recipe) -> tuple[Task, ...]:
        return ("composed",)

    def __call__(self, batch: Batch) -> Tensor:
        seen = batch.resemblance
        if seen is None:
            return batch.prediction.new_zeros(0)
        values = self.of(seen)
        if not batch.recipe.dino.weight_by_signal:
            return values
        return values * seen.signal.to(values)

    def of(self, seen: Resemblance) -> Tensor:
        """One value a row (n,)."""
        raise NotImplementedError


class Structure(Dino):
    """|| S(x0) - S(I_s) ||^2 of DINO's keys inside the thing (`equations.self_similarity`)."""

    name = "dino_structure"
    symbol, colour, paper = "L_ssim", "#4b6fa8", 0.1
    help = "DINO, structure: the parts of the thing relate as they do in its photo."

    def of(self, seen: Resemblance) -> Tensor:
        return self_similarity(seen.keys, seen.source, seen.inside)


class Patches(Dino):
    """Each patch of the thing is that of its photo (`equations.patch_contrast`)."""

    name = "dino_patches"
    symbol, colour, paper = "L_patch", "#6aa84b", 0.2
    help = "DINO, patches: each patch of the thing resembles its photo's at the same place most."

    def of(self, seen: Resemblance) -> Tensor:
        return patch_contrast(seen.keys, seen.source, seen.inside)


class Appearance(Dino):
    """|| c - c_r ||^2 of DINO's [CLS] of whole pictures (`equations.appearance`)."""

    name = "dino_style"
    symbol, colour, paper = "L_cls", "#c07a2c", 2.0
    help = "DINO, style: the whole picture looks as the style's pictures do, by DINO's [CLS]."

    def of(self, seen: Resemblance) -> Tensor:
        return appearance(seen.look, seen.references)


for _loss in (Structure(), Patches(), Appearance()):
    LOSSES.add(_loss)
