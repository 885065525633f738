"""The picture of the losses."""

from __future__ import annotations

import numpy as np

from magicapture.plot import loss_curves, smoothed


def test_curves_are_drawn_for_losses_that_come_and_go():
    history = [{"source": 1.0, **({"identity": 0.5} if step % 2 else {})} for step in range(50)]
    picture = loss_curves(history, 100, phases=[20], size=(320, 200))
    assert picture.size == (320, 200)
    colours = {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3)}
    assert (0x3B, 0x7D, 0xD8) in colours and (0xC9, 0x3C, 0x5B) in colours
    assert loss_curves([], 10).size == (640, 400)


def test_smoothing_is_a_running_mean():
    values = np.random.default_rng(0).random(200)
    expected = [values[max(0, i - 10) : i + 11].mean() for i in range(200)]
    np.testing.assert_allclose(smoothed(values), expected)
