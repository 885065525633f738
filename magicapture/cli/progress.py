"""A training run on the terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training import Event, Prepared, Previewed, Resumed, Scored, Stepped, Warned
from .images import save_image

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)


def clock(seconds: float) -> str:
    """A time as a progress bar writes it: 12:34, or 1:02:03."""
    from tqdm import tqdm

    return tqdm.format_interval(seconds)


class Progress:
    """Shows a run's events on the terminal, and writes its previews into a folder."""

    def __init__(self, previews: Path, made_with: bool = True) -> None:
        self._previews = previews
        self._made_with = made_with
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Prepared):
            self._show(event.stage, event.done, event.total, "picture")
        elif isinstance(event, Stepped):
            bar = self._show(event.phase, event.step, event.steps, "it")
            losses = {name: f"{value:.4f}" for name, value in event.losses.items()}
            bar.set_postfix(losses, refresh=False)  # drawn at the bar's own pace
        elif isinstance(event, Previewed):
            for index, image in enumerate(event.images):
                file = self._previews / f"{event.step:06}-{index}.png"
                save_image(image, file, event.prompt, made_with=self._made_with)
            if event.leakages:
                shares = ", ".join(f"{name} {share:.0%}" for name, share in event.leakages.items())
                logger.info("Leakage after step %d: %s", event.step, shares)
        elif isinstance(event, Scored):
            told = ", ".join(f"{name} {value:.2f}" for name, value in event.scores.items())
            best = "the best so far" if event.best == event.step else f"best: step {event.best}"
            logger.info("Checkpoint of step %d, %s: %s", event.step, best, told)
        elif isinstance(event, Resumed):
            logger.info("Going on after step %d of %d.", event.step, event.steps)
        elif isinstance(event, Warned):
            logger.warning("%s", event.text)

    def close(self) -> None:
        """Leave the bar as it is and go on below it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, stage: str, done: int, total: int, unit: str) -> tqdm[Any]:
        from tqdm import tqdm

        if self._bar is None or stage != self._stage:
            self.close()
            # What was done before this bar is not part of its speed.
            self._bar = tqdm(desc=stage, total=total, initial=max(0, done - 1), unit=unit)
            self._stage = stage
        self._bar.update(done - self._bar.n)
        return self._bar
