"""The demo from end to end on untrained networks: what it makes, writes and refuses."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magicapture import METRICS, Metric
from magicapture.cli import main
from magicapture.demo import (
    Demo,
    DemoSettings,
    held_out_pair,
    recipe_for,
    run,
    sheet,
    write,
)
from magicapture.demo.demo import nearest
from magicapture.demo.drawing import SAMPLING
from magicapture.demo.figure import LARGE, heat
from magicapture.errors import InputError, StorageError
from magicapture.paperdoll.pairs import pictures
from magicapture.training import Event, Prepared, Stepped


@pytest.fixture(scope="module")
def told() -> list[Event]:
    """What the demo told its listener."""
    return []


BRIGHTNESS = Metric("brightness", lambda shown: shown.images.mean(dim=(1, 2, 3)), high=1.0)


@pytest.fixture(scope="module")
def made(paperdoll_weights: Path, told: list[Event]) -> Demo:
    """A demo of 2 + 3 steps, drawn in two denoising steps."""
    recipe = recipe_for(5)
    recipe = replace(
        recipe,
        phases=tuple(replace(p, steps=n) for p, n in zip(recipe.phases, (2, 3), strict=True)),
        variants=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        drawing = "magicapture.demo.drawing"
        patch.setattr(f"{drawing}.SAMPLING", replace(SAMPLING, steps=2))
        patch.setattr(f"{drawing}.RESULTS", 2)
        patch.setattr(f"{drawing}.EDITED", 1)
        with METRICS.added(BRIGHTNESS):
            return run(DemoSettings(), told.append, recipe=recipe, weights=paperdoll_weights)


def test_it_trains_both_phases_with_every_loss(made: Demo, told: list[Event]) -> None:
    steps = [event for event in told if isinstance(event, Stepped)]
    assert len(steps) == len(made.history) == 5 and made.phase_ends == [2, 5]
    assert set(made.history[0]) == {"source", "style"}
    assert {"composed", "attention"} <= set(made.history[-1])


def test_the_bar_counts_every_picture(told: list[Event]) -> None:
    drawn = [e for e in told if isinstance(e, Prepared) and e.stage.startswith("drawing")]
    ends = {event.stage: (event.done, event.total) for event in drawn}
    assert ends == {"drawing without training": (2, 2), "drawing": (4, 4)}


def test_every_score_stands_beside_the_untrained_model_and_the_ceiling(made: Demo) -> None:
    for measure, of in made.scores.items():
        assert list(of) == ["untrained", "trained", "ceiling"], measure
        assert (of["ceiling"] is None) == measure.endswith("_leakage")
    measured = set(made.scores)
    assert {"identity", "style", "distance", "subject_leakage", "style_leakage"} <= measured
    distance = made.scores["distance"]
    assert distance["ceiling"] < distance["trained"], "true pictures are nearer to the truth"


def test_a_metric_added_from_outside_is_scored_and_written(made: Demo, tmp_path: Path) -> None:
    found = made.scores["brightness"]
    assert found["trained"] == pytest.approx(float(made.results.mean()), rel=1e-5)
    assert found["ceiling"] == pytest.approx(float(pictures(made.pair.unseen).mean()), rel=1e-5)
    write(made, tmp_path)
    facts = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    assert facts["scores"]["brightness"]["trained"] == round(found["trained"], 4)
    assert "brightness" not in METRICS


def test_the_truth_is_the_nearest_true_picture(made: Demo) -> None:
    truth = torch.stack([torch.from_numpy(doll.image) for doll in made.pair.truth])
    assert torch.equal(nearest(truth[[5, 9]] + 0.01, truth), truth[[5, 9]])
    assert made.truth.shape == made.results.shape == made.untrained.shape


def test_maps_peak_at_one(made: Demo) -> None:
    for values in made.maps.values():
        assert values.shape == (2, 16, 16) and values.min() >= 0
        assert torch.equal(values.amax((1, 2)), torch.ones(2))


def test_three_files_are_written(made: Demo, tmp_path: Path) -> None:
    files = write(made, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["result.png", "curves.png", "scores.json"]
    with Image.open(files[0]) as picture:
        assert picture.size == sheet(made).size
    facts = json.loads(files[2].read_text("utf-8"))
    assert facts["identity_seed"] == made.settings.identity and facts["steps"] == 5
    assert facts["scores"]["style"]["trained"] == round(made.scores["style"]["trained"], 4)


def test_the_sheet_shows_results_above_their_truth(made: Demo) -> None:
    page = np.asarray(sheet(made), np.float32) / 255
    large = [
        np.asarray(_large(image), np.float32) / 255
        for image in (made.results[0], made.truth[0], made.untrained[0])
    ]
    tops = [_find(page, image) for image in large]
    assert None not in tops and tops == sorted(tops)


def _large(image: torch.Tensor) -> Image.Image:
    values = (image.movedim(0, -1).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(values).resize((LARGE, LARGE), Image.Resampling.BICUBIC)


def _find(page: np.ndarray, image: np.ndarray) -> tuple[int, int] | None:
    """Where a picture lies on the page, (y, x), by its first pixels."""
    start = image[0, :8]
    for y in range(page.shape[0] - LARGE + 1):
        row = np.lib.stride_tricks.sliding_window_view(page[y], 8, axis=0)
        for x in np.flatnonzero((abs(row - start.T) < 1e-6).all((1, 2))):
            part = page[y : y + LARGE, x : x + LARGE]
            if part.shape == image.shape and np.allclose(part, image):
                return y, int(x)
    return None


def test_heat_is_brightest_at_the_peak() -> None:
    values = torch.zeros(16, 16)
    values[4, 11] = 1
    shown = heat(torch.full((3, 128, 128), 0.5), values).mean(0)
    y, x = divmod(int(shown.argmax()), 128)
    assert abs(y - 35.5) < 8 and abs(x - 91.5) < 8


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "identity, style, message",
    [
        (7, 1_000_005, "identity.*trained on"),
        (1_000_007, 999_999, "style.*trained on"),
        (1_500_000, 1_000_005, "belongs to no split"),
        (2_000_000, 1_000_005, "two splits"),
    ],
)
def test_seeds_of_training_are_refused(identity: int, style: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held_out_pair(identity, style)


def test_missing_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"weights are missing.*pretrain"):
        run(DemoSettings(), lambda event: None, weights=tmp_path)


@pytest.mark.parametrize("arguments", [["--identity", "7"], ["--seed", "-1"]])
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert main(["demo", "--out", str(tmp_path), *arguments]) == 2
    assert "seed" in caplog.text
    assert not list(tmp_path.iterdir())
