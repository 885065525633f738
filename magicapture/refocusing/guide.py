"""Refocusing with the samplers of `magicapture.sampling`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..backbone import Backbone
from ..checkpointing import checkpointed
from ..errors import InputError
from ..sampling import Step
from .engine import Refocuser, fit
from .focus import Rows
from .gradient import descend
from .settings import RefocusGuidance


class PromptRefocuser:
    """Holds the tokens of some prompts to their regions; a `sampling.Guide` for one drawing.

    rows: the tokens of each prompt, as `foci` gives them. region: the subject's (1 or B,1,H,W) in
    0..1 at any size, the style's being the rest; None finds it at each step from the attention of
    the one before.

    seen: the regions of each step so far, for each prompt (h,w), or None where there was none.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows: Rows,
        settings: RefocusGuidance,
        region: Tensor | None = None,
    ) -> None:
        if region is not None and len(region) not in (1, len(rows)):
            raise InputError(
                f"There are {len(region)} regions for {len(rows)} prompts; give one for all or one "
                "for each."
            )
        self._backbone = backbone
        self._rows = rows
        self._settings = settings
        self._region = region
        self._engine = Refocuser(backbone.attention, settings)
        self.seen: list[Sequence[Tensor | None]] = []

    def moved(self, latents: Tensor, step: Step, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """The latents brought to a lower refocusing loss, inside the gradient's window."""
        settings = self._settings
        if not settings.moves_at(step.share):
            return latents
        size = (latents.shape[-2], latents.shape[-1])
        regions = None if self._region is None else self._regions(size)

        def loss_of(at: Tensor) -> Tensor:
            return self._engine.loss(lambda: predict(at), self._rows, regions, size)

        blocks = self._backbone.checkpointed_modules() if settings.save_memory else ()
        with self._backbone.training(None), checkpointed(blocks):
            return descend(
                latents,
                loss_of,
                step=settings.gradient,
                iterations=settings.iterations,
                threshold=settings.threshold,
            )

    @contextmanager
    def predicting(self, step: Step, size: tuple[int, int]) -> Iterator[None]:
        """Bias the tokens' attention in the step's pass; negative prompts are left free."""
        if not self._settings.acts:
            yield
            return
        free, prompts = step.negatives, len(step.conditioning) - step.negatives
        times = prompts // len(self._rows)  # twice with an edit, whose words stand behind
        regions = [*[None] * free, *[*self._regions(size)] * times]
        rows = [*[()] * free, *[*self._rows] * times]
        found = self._keep if self._region is None else None
        with self._engine.holding(rows, regions, size, found):
            yield

    def _keep(self, regions: list[Tensor | None]) -> None:
        self.seen.append(regions[-len(self._rows) :])

    def _regions(self, size: tuple[int, int]) -> Sequence[Tensor | None]:
        if self._region is not None:
            region = fit(self._region.to(self._backbone.device), size)[:, 0]
            return list(region.expand(len(self._rows), -1, -1))
        return self.seen[-1] if self.seen else [None] * len(self._rows)
