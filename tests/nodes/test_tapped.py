"""ComfyUI's UNet tapped: its maps against the explicit softmax, whichever kernel computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

POSITIONS = ({"ada": [2, 3]}, {}, {"ada": [4], "ink": [1, 6, 7]})
KEYS = ((0, "ada"), (2, "ada"), (2, "ink"))
SIZE = (12, 10)


@pytest.fixture
def unet(comfyui) -> nn.Module:
    """ComfyUI's own UNet, tiny, with random weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=16,
        in_channels=4,
        model_channels=32,
        out_channels=4,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1],
        num_heads=4,
        context_dim=24,
        use_spatial_transformer=True,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    return unet.requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and a context that takes a gradient."""
    context = torch.randn(3, 9, 24).requires_grad_()
    return torch.randn(3, 4, *SIZE), torch.tensor([10.0, 500.0, 900.0]), context


@pytest.fixture
def tapped(pack, unet):
    return pack("nodes._comfy.attention").TappedComfy.of(unet)


def test_the_output_is_bit_equal_under_capture(pack, unet, tapped, inputs) -> None:
    attention = pack("magicapture.attention")
    latents, timesteps, context = inputs
    plain = unet(latents, timesteps, context=context)
    with attention.captured(tapped, factors=(1, 2)) as capture, capture.recording():
        assert torch.equal(unet(latents, timesteps, context=context), plain)
    every = attention.select(unet, middle=True)
    assert len(every) == len(attention.select(unet)) + 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_maps_equal_the_explicit_softmax_and_have_gradients(pack, unet, tapped, inputs) -> None:
    attention, lora = pack("magicapture.attention"), pack("magicapture.lora")
    refocusing = pack("magicapture.losses.equations").refocusing
    latents, timesteps, context = inputs
    layers = attention.cross_attentions(unet)
    with lora.injected(unet, lora.target_names(unet, "cross"), 2, seed=3) as injected:
        for parameter in injected.parameters():
            nn.init.normal_(parameter, std=0.2)
        seen: dict[str, Tensor] = {}
        for name, layer in layers.items():
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: seen.update({name: args[0]}), with_kwargs=True
            )
        with attention.captured(tapped) as capture:
            with capture.recording():
                unet(latents, timesteps, context=context)
            maps = capture.maps(POSITIONS, SIZE)
        assert {one.factor for one in maps} == {1, 2}
        assert {one.layer for one in maps} == set(attention.select(unet))
        for one in maps:
            layer = layers[one.layer]
            query = layer.to_q(seen[one.layer]).unflatten(-1, (4, -1))
            key = layer.to_k(context).unflatten(-1, (4, -1))
            logits = torch.einsum("bnhd,blhd->bnhl", query, key) / query.shape[-1] ** 0.5
            for values, (row, name) in zip(one.values, KEYS, strict=True):
                expected = logits.softmax(-1)[row].mean(1)[:, POSITIONS[row][name]].sum(-1)
                torch.testing.assert_close(values.flatten(), expected, atol=1e-6, rtol=0)
        losses = [refocusing(one.values, torch.zeros(3, 1, *SIZE)) for one in maps]
        learned = [*injected.parameters(), context]
        gradients = torch.autograd.grad(torch.stack(losses).sum(), learned, allow_unused=True)
    reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
    assert reached[-1] and sum(reached) > len(reached) / 2


KERNELS = ["attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_gives_the_same_biased_result(
    pack, unet, tapped, inputs, kernel, monkeypatch
) -> None:
    """The bias as an additive mask of an explicit softmax, in each of ComfyUI's own kernels."""
    import comfy.ldm.modules.attention as kernels

    refocusing, attention = pack("magicapture.refocusing"), pack("magicapture.attention")
    rows = [
        [refocusing.Focus("ada", "subject", (2, 3))],
        [],
        [refocusing.Focus("ink", "style", (6,))],
    ]
    regions = torch.zeros(3, 1, *SIZE)
    regions[..., 2:8, 3:7] = 1
    latents, timesteps, context = (x.detach() for x in inputs)
    layers = attention.cross_attentions(unet)

    def explicit(a, _):
        cells, words = refocusing.bias_parts(rows, _sized(regions, a.size), 5.0, a.key.shape[2])
        logits = a.query @ a.key.transpose(-1, -2) / a.query.shape[-1] ** 0.5
        return (logits + (cells @ words.mT)[:, None]).softmax(-1) @ a.value

    def run(tap):
        with torch.no_grad(), tapped.tapped(tap, layers):
            return unet(latents, timesteps, context=context)

    expected = run(explicit)
    monkeypatch.setattr(kernels, "optimized_attention", getattr(kernels, kernel))
    torch.testing.assert_close(
        run(refocusing.holding(rows, regions, 5.0)), expected, rtol=1e-4, atol=1e-4
    )
    with torch.no_grad():
        plain = unet(latents, timesteps, context=context)
    assert (expected[[0, 2]] - plain[[0, 2]]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    torch.testing.assert_close(expected[1], plain[1], rtol=1e-4, atol=1e-4)


def _sized(regions: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(regions, size, mode="area")
