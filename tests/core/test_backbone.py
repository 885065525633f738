"""The schedule's maths against diffusers' scheduler and against itself."""

import pytest
import torch
from diffusers import DDIMScheduler

from magicapture.backbone import Conditioning
from magicapture.backbones.support import BETAS

TYPES = ["epsilon", "v_prediction"]
T = torch.tensor([0, 1, 250, 500, 801, 999])


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(len(T), 4, 8, 8), torch.randn(len(T), 4, 8, 8)


@pytest.mark.parametrize("kind", TYPES)
def test_noise_and_target_are_diffusers(tiny, batch, kind):
    schedule, scheduler = tiny.schedule(kind), DDIMScheduler(**BETAS)
    z, epsilon = batch
    torch.testing.assert_close(
        schedule.add_noise(z, epsilon, T), scheduler.add_noise(z, epsilon, T)
    )
    expected = epsilon if kind == "epsilon" else scheduler.get_velocity(z, epsilon, T)
    torch.testing.assert_close(schedule.target(z, epsilon, T), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_x0_is_diffusers(tiny, batch, kind):
    schedule = tiny.schedule(kind)
    scheduler = DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    noisy, output = batch
    x0 = schedule.to_x0(output, noisy, T)
    for row, t in enumerate(T):
        step = scheduler.step(output[row], int(t), noisy[row])
        torch.testing.assert_close(x0[row], step.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_the_target_stands_for_its_own_latent(tiny, batch, kind):
    schedule = tiny.schedule(kind)
    z, epsilon = (tensor.double() for tensor in batch)
    noisy, target = schedule.add_noise(z, epsilon, T), schedule.target(z, epsilon, T)
    torch.testing.assert_close(schedule.to_x0(target, noisy, T), z, atol=2e-5, rtol=0)


def test_signal_and_noise_fall_and_rise(tiny):
    signal, noise = tiny.schedule().signal_and_noise(T, torch.zeros(len(T), 4, 2, 2))
    assert signal.shape == (len(T), 1, 1, 1)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    assert signal[0] > 0.999 and signal[-1] < 0.07
    assert (signal.flatten().diff() < 0).all()


def test_rows_of_a_conditioning():
    whole = Conditioning(
        torch.arange(6.0).reshape(3, 1, 2),
        {"pooled": torch.arange(3.0)[:, None]},
        positions=[{"ada": [1]}, {}, {"ada": [2, 3]}],
    )
    rows = whole[1:]
    assert len(whole) == 3 and len(rows) == 2
    assert torch.equal(rows.context, whole.context[1:])
    assert torch.equal(rows.extra["pooled"], torch.tensor([[1.0], [2.0]]))
    assert rows.positions == [{}, {"ada": [2, 3]}]
