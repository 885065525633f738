"""A loss added from outside, through the public seam alone: weight, curve, training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from magicapture.config import Phase, Rates, Recipe, Weights, from_dict, to_dict
from magicapture.errors import InputError
from magicapture.losses import LOSSES, Batch, Loss
from magicapture.plot import loss_curves
from magicapture.training import Stepped, Trainer


class Shrink(Loss):
    """The mean square of the UNet's output on the person's rows."""

    name, symbol, colour, default = "shrink", "L_shrink", "#00ff7f", 0.0
    help = "Pull of the UNet's output towards 0."

    def tasks(self, recipe: Recipe) -> tuple[str, ...]:
        return ("source",)

    def __call__(self, batch: Batch) -> torch.Tensor:
        own = [i for i, row in enumerate(batch.rows) if row.task == "source"]
        return batch.prediction[own].square().mean(dim=(1, 2, 3))


@pytest.fixture
def shrink():
    with LOSSES.added(Shrink()) as loss:
        yield loss


def phase(**weights: float) -> Phase:
    return Phase("one", 30, Rates(unet=3e-2), Weights({"source": 0, "style": 0, **weights}))


def test_it_is_trained_with(shrink, make_job, backbone):
    events = []
    job = make_job(phases=(phase(shrink=2.0),))
    with Trainer.open(job, backbone, listener=events.append) as trainer:
        trainer.run()
    steps = [event for event in events if isinstance(event, Stepped)]
    assert all(set(step.losses) == {"shrink"} for step in steps)
    assert steps[0].total == pytest.approx(2 * steps[0].losses["shrink"])
    assert steps[-1].losses["shrink"] < 0.7 * steps[0].losses["shrink"]


def test_without_a_weight_it_is_not_computed(shrink, make_job, backbone):
    events = []
    with Trainer.open(make_job(), backbone, listener=events.append) as trainer:
        trainer.run()
    assert not any("shrink" in e.losses for e in events if isinstance(e, Stepped))


def test_recipes_hold_its_weight(shrink):
    recipe = Recipe(phases=(phase(shrink=0.5),))
    assert to_dict(recipe)["phases"][0]["weights"]["shrink"] == 0.5
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    assert recipe.phases[0].weights.shrink == 0.5 and Weights()["shrink"] == 0
    assert replace(recipe, phases=(phase(),)).uses("shrink") is False


def test_its_curve_has_its_colour(shrink):
    pixels = np.asarray(loss_curves([{"shrink": 1.0}, {"shrink": 0.5}] * 10, 20))
    green = (abs(pixels.astype(int) - [0, 255, 127]) < 60).all(-1)
    assert green.sum() > 100


def test_afterwards_it_is_gone():
    assert "shrink" not in LOSSES
    with pytest.raises(
        InputError, match="shrink: there is no such setting; there are source, style"
    ):
        Weights(shrink=1)


def test_a_name_that_is_taken():
    with pytest.raises(InputError, match="already"):
        LOSSES.add(LOSSES["identity"])


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True, None])
def test_weights_that_are_none(value):
    with pytest.raises(
        InputError, match=r"weights.identity: expected a (finite )?number( of 0 or more)?, got"
    ):
        Weights(identity=value)
