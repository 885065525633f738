"""The descent in closed form, the loss against its definition, and the pass that ends early."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from magicapture.attention import LayerMaps, TappedTorch
from magicapture.losses.equations import leakage, refocusing
from magicapture.refocusing import Focus, Refocuser, RefocusGuidance, descend, region_loss

ROWS = ((Focus("ada", "subject", (2, 3), (4,)), Focus("ink", "style", (6,))),)
SIZE = (16, 16)


def test_a_move_has_the_length_of_its_share() -> None:
    """L = |z|^2 / 2 has the slope z: each move shrinks z by (1 - step)."""
    z = torch.randn(2, 4, 5, 5)
    moved = descend(z, lambda x: x.square().sum((1, 2, 3)) / 2, step=0.1, iterations=3)
    torch.testing.assert_close(moved, z * 0.9**3)
    linear = descend(z, lambda x: 9 + x[:, 0, 0, 0], step=0.1)
    expected = z.clone()
    rms = z.square().mean((1, 2, 3)).sqrt()
    expected[:, 0, 0, 0] -= 0.1 * rms * 10  # the slope is 1 in one of 100 places: rms 1 / 10
    torch.testing.assert_close(linear, expected)


def test_rows_below_the_threshold_stay() -> None:
    z = torch.stack([torch.full((4, 3, 3), 0.1), torch.ones(4, 3, 3)])
    moved = descend(z, lambda x: x.square().mean((1, 2, 3)), step=0.5, threshold=0.02)
    assert torch.equal(moved[0], z[0])
    torch.testing.assert_close(moved[1], z[1] / 2)
    assert descend(z, lambda x: x.square().mean((1, 2, 3)), step=0.5, threshold=2) is z


def test_descent_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        z = torch.ones(1, 4, 3, 3)
        moved = descend(z, lambda x: x.square().sum((1, 2, 3)), step=0.1)
        torch.testing.assert_close(moved, z * 0.9)


@pytest.mark.parametrize("measure", ["share", "minmax", "max", "none"])
def test_the_loss_is_the_mean_over_tokens_and_layers(measure) -> None:
    keys = ((0, "ada"), (0, "ink"))
    layers = [LayerMaps(str(n), 1, keys, torch.rand(2, n, n)) for n in (4, 8)]
    regions = torch.zeros(1, 1, 8, 8)
    regions[..., 2:6, :4] = 1
    found = region_loss(layers, ROWS, regions, measure)
    expected = [
        leakage(layer.values[i][None], inside, "none")
        if measure == "share"
        else refocusing(layer.values[i][None], inside, measure)
        for layer in layers
        for i, inside in ((0, regions), (1, 1 - regions))
    ]
    torch.testing.assert_close(found, torch.cat(expected).mean()[None])


@pytest.fixture
def scene(tiny):
    unet = tiny.unet().requires_grad_(False)
    context = 3 * torch.randn(1, 9, 32)
    z = torch.randn(1, 4, *SIZE)
    region = torch.zeros(SIZE)
    region[4:12, 4:12] = 1
    settings = RefocusGuidance(bias=0, gradient=0.02, factors=(2, 4))
    return unet, context, z, region, settings


@pytest.mark.parametrize("given", [True, False])
def test_the_gradient_lowers_the_loss(scene, given) -> None:
    unet, context, z, region, settings = scene
    engine = Refocuser(TappedTorch.of(unet), settings)

    def loss_of(at):
        def run():
            unet(at, torch.tensor([500]), context)

        return engine.loss(run, ROWS, [region] if given else None, SIZE)

    moved = descend(z, loss_of, step=0.02, iterations=5)
    with torch.no_grad():
        before, after = float(loss_of(z)), float(loss_of(moved))
    assert after < 0.99 * before


@pytest.mark.parametrize("given", [True, False])
def test_a_pass_that_ends_early_has_the_same_loss_and_gradient(scene, given) -> None:
    """The last layer that is mapped may be the one in which the region is found."""
    unet, context, z, region, settings = scene
    regions = [region] if given else None
    engine = Refocuser(TappedTorch.of(unet), settings)
    ends = []
    unet.conv_out.register_forward_hook(lambda *_: ends.append(1))

    def once():
        at = z.clone().requires_grad_()
        loss = engine.loss(lambda: unet(at, torch.tensor([500]), context), ROWS, regions, SIZE)
        return loss, torch.autograd.grad(loss.sum(), at)[0]

    whole, early, again = once(), once(), once()
    assert ends == [1], "the second pass and the third end behind the last map"
    for a, b, c in zip(whole, early, again, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    unet(z, torch.tensor([500]), context)
    assert len(ends) == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.up_blocks.modules())


def test_a_pass_whose_layers_have_shrunk_is_not_ended_at_the_layer_of_before(scene) -> None:
    """Deep shrink: in the small pass the wanted maps are those of other, later layers."""
    unet, context, z, region, settings = scene
    settings = dataclasses.replace(settings, factors=(2,))
    small = torch.nn.functional.avg_pool2d(z, 2)

    def loss(engine, at):
        return engine.loss(lambda: unet(at, torch.tensor([500]), context), ROWS, [region], SIZE)

    engine, alone = (Refocuser(TappedTorch.of(unet), settings) for _ in range(2))
    whole, shrunk = loss(engine, z), loss(alone, small)
    assert not torch.equal(whole, shrunk)
    for _ in range(2):
        assert torch.equal(loss(engine, small), shrunk)
        assert torch.equal(loss(engine, z), whole)


def test_a_row_without_a_region_has_no_loss(scene) -> None:
    unet, context, z, _, settings = scene
    engine = Refocuser(TappedTorch.of(unet), settings)
    loss = engine.loss(lambda: unet(z, torch.tensor([500]), context), ROWS, [None], SIZE)
    assert float(loss) == 0
