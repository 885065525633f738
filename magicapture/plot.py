"""The curves of a run, as a picture: its losses, and beside them the scores of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .losses import LOSSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image


def loss_curves(
    history: Sequence[Mapping[str, float]],
    steps: int,
    *,
    phases: Sequence[int] = (),
    scores: Mapping[int, Mapping[str, float]] | None = None,
    size: tuple[int, int] = (640, 400),
    dpi: int = 100,
) -> Image:
    """Draw each loss of a history (one mapping a step; a loss may be missing) against the step.

    steps is the length of the whole run; phases the steps at which one ends; size in pixels; the
    letters grow with the dpi. scores: of checkpoints by step, drawn beside the losses if there are
    any.
    Every curve is smoothed and divided by its own start, so that all fit one axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes, *beside = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    if scores:
        _draw_scores(beside[0], scores, steps)
    for name, loss in LOSSES.items():
        points = [(i + 1, losses[name]) for i, losses in enumerate(history) if name in losses]
        if not points:
            continue
        at, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
        smooth = smoothed(values)
        axes.plot(
            at, smooth / max(abs(smooth[0]), 1e-8), color=loss.colour, label=name, linewidth=1.6
        )
    for end in phases:
        axes.axvline(end, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_xlim(0, max(1, steps))
    axes.set_xlabel("step")
    axes.set_ylabel("loss / its start")
    axes.grid(alpha=0.25)
    if axes.lines[len(phases) :]:
        axes.legend(loc="upper right", fontsize=8, frameon=False, ncols=2)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_scores(axes: Axes, scores: Mapping[int, Mapping[str, float]], steps: int) -> None:
    """Each score against the step, 0 to 1 and whatever lies outside of it."""
    for name in dict.fromkeys(name for of in scores.values() for name in of):
        points = sorted((step, of[name]) for step, of in scores.items() if name in of)
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6, marker="o", markersize=3)
    axes.set_xlim(0, max(1, steps))
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.02, axes.get_ylim()[1]))
    axes.set_xlabel("step")
    axes.set_ylabel("score of the checkpoint")
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=7, frameon=False, ncols=2)


def smoothed(values: NDArray[np.float64], share: float = 0.05) -> NDArray[np.float64]:
    """A running mean over a share of the points, shorter at the ends; the same length."""
    width = max(1, int(len(values) * share))
    sums = np.cumsum(np.insert(values, 0, 0.0))
    index = np.arange(len(values))
    low = np.maximum(0, index - width)
    high = np.minimum(len(values), index + width + 1)
    return np.asarray((sums[high] - sums[low]) / (high - low))
