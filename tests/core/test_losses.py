"""Each loss against its closed form in loops, and the properties the method relies on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from magicapture.losses.equations import (
    identity,
    leakage,
    masked_reconstruction,
    outside_share,
    refocusing,
    scale_map,
    timestep_weights,
    token_norm,
)
from magicapture.schedule import DiscreteLevels, FlowLevels, Schedule


def binary(*shape: int) -> Tensor:
    return (torch.rand(shape) > 0.6).float()


@pytest.mark.parametrize("normalise", [True, False])
def test_masked_reconstruction_closed_form(normalise) -> None:
    prediction, target = torch.randn(2, 3, 4, 4, 5)
    mask = torch.rand(3, 1, 4, 5)
    losses = masked_reconstruction(prediction, target, mask, normalise_area=normalise)
    for b in range(3):
        total = area = 0.0
        for i in range(4):
            for j in range(5):
                m = float(mask[b, 0, i, j])
                area += m / 20
                for c in range(4):
                    total += m * float(prediction[b, c, i, j] - target[b, c, i, j]) ** 2 / 80
        assert float(losses[b]) == pytest.approx(total / area if normalise else total, rel=1e-5)


def test_masked_reconstruction_has_no_gradient_outside_the_mask() -> None:
    prediction = torch.randn(2, 4, 8, 8, requires_grad=True)
    mask = binary(2, 1, 8, 8)
    masked_reconstruction(prediction, torch.randn(2, 4, 8, 8), mask).sum().backward()
    where = mask.expand_as(prediction) == 0
    assert torch.all(prediction.grad[where] == 0)
    assert torch.all(prediction.grad[~where] != 0)


def test_area_normalisation_makes_a_constant_error_count_alike() -> None:
    masks = torch.zeros(4, 1, 16, 16)
    for b, side in enumerate((1, 4, 9, 16)):
        masks[b, :, :side, :side] = 1
    error = torch.full((4, 4, 16, 16), 0.5)
    losses = masked_reconstruction(error, torch.zeros_like(error), masks)
    torch.testing.assert_close(losses, torch.full((4,), 0.25))


def test_an_empty_mask_gives_zero_and_half_precision_gives_float32() -> None:
    prediction = torch.randn(1, 4, 8, 8).bfloat16().requires_grad_()
    loss = masked_reconstruction(prediction, torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 0 and torch.all(prediction.grad == 0)


def test_identity_closed_form() -> None:
    a, b = torch.randn(2, 3, 16).double().numpy()
    norm = np.linalg.norm
    expected = [1 - x @ y / norm(x) / norm(y) for x, y in zip(a, b, strict=True)]
    one = [1 - x @ b[0] / norm(x) / norm(b[0]) for x in a]
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(identity(ta, tb).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(identity(ta, tb[0]).numpy(), one, rtol=1e-5)
    np.testing.assert_allclose(identity(3 * ta, ta).numpy(), np.zeros(3), atol=1e-6)


def test_scale_map() -> None:
    values = torch.rand(3, 5, 4) * 0.1 + 0.02
    low = values.flatten(1).min(1).values[:, None, None]
    high = values.flatten(1).max(1).values[:, None, None]
    torch.testing.assert_close(scale_map(values, "minmax"), (values - low) / (high - low))
    torch.testing.assert_close(scale_map(values, "max"), values / high)
    torch.testing.assert_close(scale_map(values, "mean"), values / values.mean((1, 2), True))
    assert torch.equal(scale_map(values, "none"), values)


@pytest.mark.parametrize("scaling", ["minmax", "max"])
def test_minimum_and_maximum_are_constants(scaling) -> None:
    values = (torch.rand(1, 6, 6) * 0.1 + 0.01).requires_grad_()
    scale_map(values, scaling).sum().backward()
    floor = values.min() if scaling == "minmax" else 0
    expected = 1 / (values.max() - floor)
    torch.testing.assert_close(values.grad, expected.detach().expand_as(values))


def test_attention_given_up_everywhere_gains_nothing_by_the_mean() -> None:
    values, inside = torch.rand(1, 8, 8) * 0.1 + 0.01, binary(1, 1, 8, 8)
    whole = refocusing(values, inside, "mean")
    torch.testing.assert_close(refocusing(0.1 * values, inside, "mean"), whole)
    values.requires_grad_()
    refocusing(values, inside, "mean").sum().backward()
    along = (values.grad * values.detach()).sum()  # no gradient along the map itself
    torch.testing.assert_close(along, torch.zeros(()), atol=1e-5, rtol=0)
    assert (values.grad[inside[:, 0] == 1] < 0).all()  # attention inside is asked for


def test_a_uniform_floor_is_punished_by_max_and_not_by_minmax() -> None:
    inside = torch.zeros(1, 1, 8, 8)
    inside[..., 2:6, 2:6] = 1
    good = 0.3 * inside[:, 0]
    assert float(refocusing(good, inside, "max")) == 0
    assert float(refocusing(good + 0.1, inside, "minmax")) == pytest.approx(0, abs=1e-12)
    assert float(refocusing(good + 0.1, inside, "max")) == pytest.approx(0.75 * 0.25**2, rel=1e-5)


@pytest.mark.parametrize("scaling", ["minmax", "max", "mean", "share", "none"])
def test_a_flat_map_has_finite_small_gradients(scaling) -> None:
    noise = 1e-9 * torch.rand(1, 8, 8)
    values = (torch.full((1, 8, 8), 1 / 77) + noise).requires_grad_()
    refocusing(values, torch.zeros(1, 1, 8, 8), scaling).sum().backward()
    assert torch.isfinite(values.grad).all()
    assert values.grad.abs().max() < 100


@pytest.mark.parametrize("scaling", ["minmax", "max", "mean", "none"])
def test_refocusing_closed_form(scaling) -> None:
    values, inside = torch.rand(2, 4, 4) * 0.2, binary(2, 1, 8, 8)
    losses = refocusing(values, inside, scaling)
    for r in range(2):
        a = values[r].numpy().astype(np.float64)
        m = inside[r, 0].numpy().reshape(4, 2, 4, 2).mean((1, 3))
        if scaling == "minmax":
            a = (a - a.min()) / (a.max() - a.min())
        elif scaling == "max":
            a = a / a.max()
        elif scaling == "mean":
            a = a / a.mean()
        total = sum((a[i, j] * (1 - m[i, j])) ** 2 for i in range(4) for j in range(4))
        assert float(losses[r]) == pytest.approx(total / 16, rel=1e-5)


def test_refocusing_equals_the_papers_form_on_a_binary_mask() -> None:
    values, inside = torch.rand(3, 8, 8), binary(3, 1, 8, 8)
    m = inside[:, 0]
    paper = ((scale_map(values, "minmax") - m) * (1 - m)).square().mean((1, 2))
    torch.testing.assert_close(refocusing(values, inside, "minmax"), paper)


def test_refocusing_on_an_enlarged_map() -> None:
    values, inside = torch.rand(1, 4, 4), binary(1, 1, 16, 16)
    a = cv2.resize(values[0].numpy(), (16, 16), interpolation=cv2.INTER_LINEAR)
    a = (a - a.min()) / (a.max() - a.min())
    expected = ((a * (1 - inside[0, 0].numpy())) ** 2).mean()
    loss = refocusing(values, inside, "minmax", map_size=16)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_refocusing_leaves_the_inside_free() -> None:
    values = torch.rand(2, 8, 8, requires_grad=True)
    inside = binary(2, 1, 8, 8)
    refocusing(values, inside, "minmax").sum().backward()
    assert torch.all(values.grad[inside[:, 0] == 1] == 0)
    assert values.grad.abs().sum() > 0


@pytest.mark.parametrize("side", [16, 32])
def test_a_peak_outside_costs_no_more_than_1_by_the_share(side) -> None:
    values = torch.full((1, side, side), 1e-3)
    values[0, 0, 0] = 0.2  # a token's peak, outside the mask
    inside = torch.zeros(1, 1, side, side)
    inside[..., side // 4 :, side // 4 :] = 1
    outside = 0.2 + 1e-3 * (side**2 - (3 * side // 4) ** 2 - 1)
    expected = outside / (0.2 + 1e-3 * (side**2 - 1))
    assert float(refocusing(values, inside, "share")) == pytest.approx(expected, rel=1e-5)
    assert float(refocusing(values, inside, "mean")) > 25  # what the share is for


def test_the_share_closed_form_and_its_slope() -> None:
    values, inside = torch.rand(3, 4, 5, dtype=torch.float64), torch.rand(3, 1, 4, 5).double()
    values.requires_grad_()
    losses = refocusing(values, inside, "share")
    for r, loss in enumerate(losses.tolist()):
        a, m = values[r].detach().numpy(), inside[r, 0].float().double().numpy()
        assert loss == pytest.approx((a * (1 - m)).sum() / a.sum(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda v: outside_share(v, inside), values, eps=1e-6)
    losses.sum().backward()
    # Less attention everywhere gains nothing: the slope along the map itself is 0.
    along = (values.grad * values.detach()).sum((1, 2))
    torch.testing.assert_close(along, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(refocusing(0.01 * values, inside, "share"), losses)
    torch.testing.assert_close(leakage(values, inside, "share"), losses)


def test_leakage_is_the_share_outside() -> None:
    inside = torch.zeros(3, 1, 4, 4)
    inside[..., :2, :] = 1
    values = torch.zeros(3, 4, 4)
    values[0, 0, 0], values[1, 3, 3], values[2] = 0.2, 0.4, 0.1
    torch.testing.assert_close(leakage(values, inside), torch.tensor([0.0, 1.0, 0.5]))
    mixed = torch.rand(1, 4, 4)
    expected = mixed[:, 2:].sum() / mixed.sum()
    torch.testing.assert_close(leakage(mixed, inside[:1])[0], expected)


def test_token_norm_closed_form() -> None:
    vectors = torch.randn(3, 8)
    expected = np.mean([(np.linalg.norm(v) - 0.4) ** 2 for v in vectors.numpy()])
    assert float(token_norm(vectors)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weighting", ["none", "min_snr", "v"])
def test_timestep_weights_closed_form(weighting) -> None:
    abar = torch.linspace(0.998, 0.005, 50)
    raw = []
    for a in abar.tolist():
        snr = a / (1 - a)
        least = 1 if weighting == "none" else min(snr, 5) / snr
        raw.append(least * (min(1 + 1 / snr, 10) if weighting == "v" else 1))
    expected = torch.tensor(raw) / (sum(raw) / len(raw))
    schedule = Schedule(DiscreteLevels(abar))
    some = torch.tensor([3, 49, 0])
    every = timestep_weights(schedule, torch.arange(50), weighting)
    torch.testing.assert_close(every, expected)
    assert torch.equal(timestep_weights(schedule, some, weighting), every[some])


@pytest.mark.parametrize("weighting", ["min_snr", "v"])
def test_an_error_counts_alike_however_the_model_predicts(weighting) -> None:
    """An error e in x0 is sqrt(SNR) e in epsilon and sqrt(1 + SNR) e in v."""
    abar = torch.linspace(0.998, 0.15, 50)  # before the limit on strong noise
    snr = abar / (1 - abar)
    t, levels = torch.arange(50), DiscreteLevels(abar)
    epsilon = timestep_weights(Schedule(levels), t, weighting) * snr
    v = timestep_weights(Schedule(levels, "v_prediction"), t, weighting) * (1 + snr)
    torch.testing.assert_close(epsilon / epsilon.mean(), v / v.mean())


@pytest.mark.parametrize("weighting", ["min_snr", "v"])
def test_an_error_of_a_flow_counts_as_one_in_epsilon_at_the_same_snr(weighting) -> None:
    """An error e in x0 is e / sigma in a flow's output."""
    flow = Schedule(FlowLevels("uniform"), "flow")
    sigmas = torch.linspace(0.05, 0.7, 50)
    snr = ((1 - sigmas) / sigmas) ** 2
    abar = snr / (1 + snr)
    epsilon = timestep_weights(Schedule(DiscreteLevels(abar)), torch.arange(50), weighting) * snr
    mine = timestep_weights(flow, sigmas, weighting) / sigmas**2
    torch.testing.assert_close(mine / mine.mean(), epsilon / epsilon.mean())
    drawn = timestep_weights(flow, flow.levels.typical(), weighting)
    torch.testing.assert_close(drawn.mean(), torch.tensor(1.0))
