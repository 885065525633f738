"""Colours that latents are read with: agreement by hand, and what there is to compare."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from magicapture.training import Trainer, Warned
from magicapture.training.colours import FOREIGN, agreement, vae_advice

COLOURS = torch.tensor([[0.3, 0.2, 0.2], [0.1, -0.2, 0.1], [-0.2, 0.1, 0.3], [0.0, 0.1, -0.1]])


@pytest.fixture
def images() -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    return F.interpolate(torch.rand(2, 3, 8, 8, generator=chance), scale_factor=8.0)


@pytest.fixture
def latents(images: torch.Tensor) -> torch.Tensor:
    """Those that COLOURS reads as the images, but for brightness and noise."""
    small = F.interpolate(images, (8, 8), mode="area")
    exact = torch.einsum("bchw,cr->brhw", small, torch.linalg.pinv(COLOURS))
    return 1.7 * exact + 0.4


def test_right_colours_agree_whatever_the_scale(images, latents) -> None:
    assert agreement(COLOURS, latents, images) == pytest.approx(1, abs=1e-4)
    assert agreement(-COLOURS, latents, images) == pytest.approx(-1, abs=1e-4)


def test_it_is_the_correlation_of_what_is_left_of_brightness(images, latents) -> None:
    other = COLOURS.flip(0)
    small = F.interpolate(images, (8, 8), mode="area")
    pairs = []
    for values in (torch.einsum("bchw,cr->brhw", latents, other), small):
        rows = (values - values.mean(dim=1, keepdim=True)).movedim(1, 0).flatten(1)
        pairs.append((rows - rows.mean(dim=1, keepdim=True)).flatten())
    expected = float(torch.corrcoef(torch.stack(pairs))[0, 1])
    assert expected < FOREIGN
    assert agreement(other, latents, images) == pytest.approx(expected, abs=1e-4)


def test_grey_photos_have_no_colours_to_compare(images, latents) -> None:
    assert (
        agreement(COLOURS, latents, images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)) is None
    )


def test_it_is_told_before_the_first_step_where_they_are_known(make_job, backbone) -> None:
    told: list[object] = []
    assert backbone.colours is None and list(vae_advice(make_job(), backbone)) == []
    backbone.colours = COLOURS  # of no untrained autoencoder
    with Trainer.open(make_job(), backbone, listener=told.append) as trainer:
        assert trainer.step == 0
    texts = [event.text for event in told if isinstance(event, Warned)]
    assert any(text.startswith("The VAE may be of another family") for text in texts)
