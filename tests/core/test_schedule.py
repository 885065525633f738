"""The schedule against closed forms, against itself, and against diffusers' schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from magicapture.backbones.support import BETAS
from magicapture.losses.equations import timestep_weights
from magicapture.schedule import (
    DiscreteLevels,
    FlowLevels,
    Schedule,
    at_side,
    flow_levels,
    stable_diffusion_snr,
)

T = torch.tensor([0, 1, 250, 500, 801, 999])
SIGMAS = torch.tensor([0.0, 1e-3, 0.25, 0.618, 0.95, 1.0])
ZERO = {"rescale_betas_zero_snr": True}


def discrete(kind, **changes) -> Schedule:
    return Schedule(DiscreteLevels(DDIMScheduler(**BETAS, **changes).alphas_cumprod), kind)


PROCESSES = {
    "epsilon": (discrete("epsilon"), T),
    "v": (discrete("v_prediction"), T),
    "v, zero terminal SNR": (discrete("v_prediction", **ZERO), T),
    "flow": (Schedule(FlowLevels(), "flow"), SIGMAS),
}
every_process = pytest.mark.parametrize(("schedule", "t"), PROCESSES.values(), ids=PROCESSES.keys())


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(len(T), 4, 8, 8), torch.randn(len(T), 4, 8, 8)


# -- the algebra ------------------------------------------------------------------------------


@every_process
def test_the_target_stands_for_its_own_latent_and_noise(schedule, t, batch):
    z, epsilon = (tensor.double() for tensor in batch)
    noisy, target = schedule.add_noise(z, epsilon, t), schedule.target(z, epsilon, t)
    torch.testing.assert_close(schedule.to_x0(target, noisy, t), z, atol=2e-5, rtol=0)
    torch.testing.assert_close(schedule.to_epsilon(target, noisy, t), epsilon, atol=2e-5, rtol=0)


def test_closed_forms(batch):
    z, epsilon = batch
    abar = DDIMScheduler(**BETAS).alphas_cumprod[T].reshape(-1, 1, 1, 1)
    a, b, sigma = abar.sqrt(), (1 - abar).sqrt(), SIGMAS.reshape(-1, 1, 1, 1)
    for kind, target in (("epsilon", epsilon), ("v_prediction", a * epsilon - b * z)):
        assert torch.equal(discrete(kind).add_noise(z, epsilon, T), a * z + b * epsilon)
        assert torch.equal(discrete(kind).target(z, epsilon, T), target)
    assert torch.equal(discrete("epsilon").to_x0(epsilon, z, T), (z - b * epsilon) / a)
    assert torch.equal(discrete("epsilon").to_epsilon(epsilon, z, T), epsilon)
    assert torch.equal(discrete("v_prediction").to_x0(epsilon, z, T), a * z - b * epsilon)
    flow, _ = PROCESSES["flow"]
    assert torch.equal(flow.add_noise(z, epsilon, SIGMAS), (1 - sigma) * z + sigma * epsilon)
    assert torch.equal(flow.target(z, epsilon, SIGMAS), epsilon - z)
    assert torch.equal(flow.to_x0(epsilon, z, SIGMAS), z - sigma * epsilon)
    expected = z + (1 - sigma) * epsilon
    torch.testing.assert_close(flow.to_epsilon(epsilon, z, SIGMAS), expected)


@every_process
def test_mix_falls_and_rises_and_keeps_the_latents_dtype(schedule, t):
    a, b = schedule.mix(t, torch.zeros(len(t), 4, 2, 2))
    assert a.shape == b.shape == (len(t), 1, 1, 1)
    assert (a.flatten().diff() < 0).all() and (b.flatten().diff() > 0).all()
    assert schedule.mix(t, torch.zeros(len(t), 4, 2, 2, dtype=torch.bfloat16))[0].dtype == (
        torch.bfloat16
    )


@every_process
def test_signal_to_noise(schedule, t):
    a, b = (x.flatten().double() for x in schedule.mix(t, torch.zeros(len(t), 1, 1, 1)))
    snr, signal = schedule.snr(t), schedule.signal(t)
    assert snr.isfinite().all() and (snr.diff() < 0).all()
    inner = b > 0
    torch.testing.assert_close(snr[inner].double(), (a / b)[inner] ** 2, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(signal.double(), a**2 / (a**2 + b**2), rtol=1e-5, atol=1e-9)


def test_the_signals_share_of_a_timestep_is_abar_to_the_last_bit():
    schedule, t = discrete("epsilon"), torch.arange(1000)
    abar = schedule.levels.alphas_cumprod
    assert torch.equal(schedule.signal(t), abar)
    assert torch.equal(schedule.snr(t), abar / (1 - abar))
    torch.testing.assert_close(schedule.snr(t).double(), stable_diffusion_snr(), rtol=1e-3, atol=0)


@every_process
def test_errors_of_the_output_go_with_those_of_the_noise(schedule, t, batch):
    """Moving p by 1 moves eps by a / det; their squares' ratio is `error_ratio`."""
    noisy, p = (tensor.double() for tensor in batch)
    moved = schedule.to_epsilon(p + 1, noisy, t) - schedule.to_epsilon(p, noisy, t)
    ratio = schedule.error_ratio(t).double()
    assert ratio.isfinite().all()
    some = schedule.snr(t) > 0
    expected = 1 / moved.mean((1, 2, 3)).square()
    torch.testing.assert_close(ratio[some], expected[some], rtol=1e-3, atol=0)


# -- zero terminal SNR ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_nothing_is_divided_by_the_last_signal_of_zero(kind, batch):
    schedule, last = discrete(kind, **ZERO), torch.tensor([999] * len(T))
    z, epsilon = batch
    assert schedule.levels.alphas_cumprod[-1] == 0
    assert torch.equal(schedule.add_noise(z, epsilon, last), epsilon)
    assert (schedule.snr(last) == 0).all() and (schedule.signal(last) == 0).all()
    x0 = schedule.to_x0(epsilon + 0.5, epsilon, last)
    if kind == "epsilon":  # which says nothing of z there
        torch.testing.assert_close(x0, torch.full_like(z, -0.5 * 4096), rtol=1e-3, atol=0)
    else:
        assert torch.equal(x0, -(epsilon + 0.5))
    assert schedule.to_epsilon(z, epsilon, last).isfinite().all()
    for t in (last, torch.arange(1000)):
        for weighting in ("none", "min_snr", "v"):
            assert timestep_weights(schedule, t, weighting).isfinite().all()
    assert math.isfinite(schedule.levels.sigma(998.5)) and schedule.levels.sigma(999.0) > 1000
    assert schedule.levels.limit(1e-9) == 999 and schedule.levels.limit(0) == 1000


def test_a_clean_and_a_noise_only_level_of_a_flow_are_finite():
    schedule, t = Schedule(FlowLevels(), "flow"), torch.tensor([0.0, 1.0])
    assert schedule.snr(t)[1] == 0 and schedule.signal(t).tolist() == [1, 0]
    for weighting in ("none", "min_snr", "v"):
        assert timestep_weights(schedule, t, weighting).isfinite().all()


# -- diffusers --------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, ZERO], ids=["SD", "zero terminal SNR"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_are_diffusers(kind, changes, batch):
    schedule, scheduler = discrete(kind, **changes), DDPMScheduler(**BETAS, **changes)
    z, epsilon = batch
    abar = scheduler.alphas_cumprod
    torch.testing.assert_close(schedule.levels.alphas_cumprod, abar, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        schedule.add_noise(z, epsilon, T), scheduler.add_noise(z, epsilon, T)
    )
    expected = epsilon if kind == "epsilon" else scheduler.get_velocity(z, epsilon, T)
    torch.testing.assert_close(schedule.target(z, epsilon, T), expected)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("epsilon", {}), ("v_prediction", {}), ("v_prediction", ZERO)],
    ids=["epsilon", "v", "v, zero terminal SNR"],
)
def test_x0_is_diffusers(kind, changes, batch):
    scheduler = DDIMScheduler(**BETAS, **changes, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    noisy, output = batch
    x0 = discrete(kind, **changes).to_x0(output, noisy, T)
    for row, t in enumerate(T):
        step = scheduler.step(output[row], int(t), noisy[row])
        torch.testing.assert_close(x0[row], step.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_diffusers(shift, batch):
    z, epsilon = batch
    schedule = Schedule(FlowLevels(shift=shift), "flow")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    chosen = torch.tensor([0, 5, 100, 500, 900, 999])
    sigmas = scheduler.sigmas[chosen]
    noisy = schedule.add_noise(z, epsilon, sigmas)
    theirs = scheduler.scale_noise(z, scheduler.timesteps[chosen], epsilon)
    torch.testing.assert_close(noisy, theirs, atol=0, rtol=0)
    scheduler.set_timesteps(sigmas=[0.6])  # one step, to sigma 0
    sigma = scheduler.sigmas[:1].expand(len(z))
    there = scheduler.step(epsilon, scheduler.timesteps[0], z).prev_sample
    torch.testing.assert_close(schedule.to_x0(epsilon, z, sigma), there)
    even = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas[:1000].flip(0)
    drawn = FlowLevels("uniform", shift).typical()  # the middles of the same thousand steps
    u = (torch.arange(1000) + 1) / 1000
    torch.testing.assert_close(even, shift * u / (1 + (shift - 1) * u))
    assert (drawn < even).all() and (drawn[1:] > even[:-1]).all()


# -- limits -----------------------------------------------------------------------------------


def test_an_snr_is_the_same_limit_in_every_process():
    sd, flow = discrete("epsilon").levels, FlowLevels()
    assert [sd.limit(snr) for snr in (0.383, 0.0385, 0, 1e9)] == [500, 800, 1000, 0]
    assert flow.limit(0.383) == pytest.approx(0.618, abs=1e-3)
    assert flow.limit(0) == 1
    for snr in (3.0, 0.4, 0.01):
        t = torch.tensor([flow.limit(snr)])
        assert float(Schedule(flow, "flow").snr(t)) == pytest.approx(snr, rel=1e-4)
        assert sd.sigma(sd.limit(snr)) == pytest.approx(flow.sigma(flow.limit(snr)), rel=5e-3)


def test_twice_the_side_has_a_quarter_of_the_snr():
    assert at_side(0.383, 512) == 0.383
    assert at_side(0.383, 1024) == 0.383 / 4 and at_side(0.383 / 16, 128) == 0.383
    assert discrete("epsilon").levels.limit(at_side(0.383, 1024)) == pytest.approx(693, abs=2)
    assert FlowLevels().limit(at_side(0.383, 1024)) == pytest.approx(0.764, abs=1e-3)


def test_an_average_over_cells_shows_as_much_at_a_quarter_of_the_snr():
    """The rule itself: averaged over 2x2 cells, a picture of twice the side has half the noise."""
    torch.manual_seed(0)
    picture = torch.randn(1, 1, 64, 64)
    flow = Schedule(FlowLevels(), "flow")

    def error(side_factor: int, snr: float) -> float:
        large = picture.repeat_interleave(side_factor, -1).repeat_interleave(side_factor, -2)
        t = torch.tensor([flow.levels.limit(snr)])
        noisy = flow.add_noise(large, torch.randn_like(large), t) / (1 - t)
        small = torch.nn.functional.avg_pool2d(noisy, side_factor)
        return float((small - picture).square().mean())

    assert error(1, 0.4) == pytest.approx(error(2, at_side(0.4, 1024)), rel=0.1)


# -- draws ------------------------------------------------------------------------------------


def test_timesteps_are_drawn_as_ever_with_the_same_random_numbers():
    levels = discrete("epsilon").levels
    for high, limits in ((1000, {}), (800, {"share": 0.8}), (500, {"min_snr": 0.383})):
        mine, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
        drawn = [levels.draw(mine, **limits) for _ in range(50)]
        assert drawn == [int(torch.randint(high, (), generator=theirs)) for _ in range(50)]
        assert torch.equal(mine.get_state(), theirs.get_state())
    assert levels.draw(torch.Generator(), min_snr=1e9) == 0
    assert torch.equal(levels.typical(), torch.arange(1000))
    short = DiscreteLevels(levels.alphas_cumprod[:7])
    assert {short.draw(mine) for _ in range(200)} == set(range(7))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spread", ["uniform", "logit-normal"])
def test_a_flows_draws_have_the_distribution_that_they_say(spread, shift):
    levels, chance = FlowLevels(spread, shift), torch.Generator().manual_seed(1)
    count = 4000
    u = torch.rand(10**6) if spread == "uniform" else torch.randn(10**6).sigmoid()
    expected = shift * u / (1 + (shift - 1) * u)
    for limits, end in (({}, 1.0), ({"share": 0.7}, 0.7), ({"min_snr": 0.383}, 0.618)):
        drawn = torch.tensor([levels.draw(chance, **limits) for _ in range(count)])
        assert drawn.min() > 0 and drawn.max() < end + 1e-3
        inside = expected[expected < end]
        at = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
        torch.testing.assert_close(drawn.quantile(at), inside.quantile(at), atol=0.03, rtol=0)
    typical = levels.typical()
    torch.testing.assert_close(typical.quantile(at), expected.quantile(at), atol=3e-3, rtol=0)


def test_a_draw_takes_one_random_number_whatever_its_limit():
    states = []
    for limits in ({}, {"share": 0.2}, {"min_snr": 3.0}):
        chance = torch.Generator().manual_seed(1)
        FlowLevels().draw(chance, **limits)
        states.append(chance.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_levels_by_their_share_of_the_range_and_between_two():
    sd, flow = discrete("epsilon").levels, FlowLevels()
    assert [sd.at(share) for share in (0, 0.2, 1)] == [0, 200, 999]
    assert [flow.at(share) for share in (0, 0.2, 1)] == [0, 0.2, 1]
    between = torch.tensor([3.4, 998.6])
    assert sd.nearest(between).tolist() == [3, 999] and sd.nearest(between).dtype == torch.int64
    assert torch.equal(flow.nearest(between), between)
    abar = sd.alphas_cumprod.double()
    known = ((1 - abar) / abar).sqrt()
    assert sd.sigma(400.0) == pytest.approx(float(known[400]))
    assert sd.sigma(400.5) == pytest.approx(float((known[400] * known[401]).sqrt()))
    assert flow.sigma(0.5) == 1 and math.isfinite(flow.sigma(1.0))


def test_training_may_draw_at_a_shift_of_its_own() -> None:
    """Its levels are those of that shift, and sampling's stay."""
    own, plain = flow_levels(7.5, 3.0), FlowLevels(shift=3.0)
    assert type(flow_levels(7.5)) is FlowLevels and flow_levels(7.5).shift == 7.5
    assert (own.shift, own.shift_of_draws) == (7.5, 3.0)
    assert torch.equal(own.typical(), plain.typical())
    limits = {"min_snr": 0.383}
    drawn = [levels.draw(torch.Generator().manual_seed(1), **limits) for levels in (own, plain)]
    assert drawn[0] == drawn[1] < own.limit(0.383)


def test_a_flow_refuses_timesteps():
    schedule = Schedule(FlowLevels(), "flow")
    with pytest.raises(TypeError, match="levels of a flow"):
        schedule.add_noise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.tensor([200]))
    assert isinstance(schedule.levels.at(1), float)
