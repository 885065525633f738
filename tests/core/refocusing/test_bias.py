"""The bias against softmax by hand, on diffusers' UNet; nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from magicapture.attention import Attention, TappedTorch, captured, cross_attentions
from magicapture.errors import UnsupportedModelError
from magicapture.refocusing import Focus, bias_parts, biased, holding

ROWS = ((), (Focus("ada", "subject", (2, 3)), Focus("ink", "style", (6,))))
SIZE = (16, 12)


@pytest.fixture
def unet(tiny) -> nn.Module:
    return tiny.unet().requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, *SIZE), torch.tensor([700, 700]), torch.randn(2, 9, 32)


@pytest.fixture
def regions() -> Tensor:
    inside = torch.zeros(2, 1, *SIZE)
    inside[..., 4:12, 4:8] = 1
    return inside


def test_bias_is_minus_strength_outside_the_tokens_region() -> None:
    region = torch.tensor([1.0, 0.25, 0.0, 0.0]).view(1, 1, 2, 2)
    cells, words = bias_parts(ROWS[1:], region, 4.0, 8)
    found = cells @ words.mT
    expected = torch.zeros(1, 4, 8)
    expected[0, :, 2] = expected[0, :, 3] = torch.tensor([0.0, -3.0, -4.0, -4.0])
    expected[0, :, 6] = torch.tensor([-4.0, -1.0, 0.0, 0.0])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_bias_in_further_dimensions_is_a_bias(scale) -> None:
    query, key, value = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 7, 6), torch.randn(2, 3, 7, 6)
    cells, words = torch.randn(2, 5, 2), torch.randn(2, 7, 2)
    plain = Attention("here", query, key, value, (5, 1), scale)
    held = biased(plain, cells, words)
    assert held.query.shape[-1] == held.value.shape[-1] == 14
    fused = nn.functional.scaled_dot_product_attention
    found = fused(held.query, held.key, held.value, scale=held.scale)
    mask = (cells @ words.mT)[:, None]
    expected = fused(query, key, value, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found[..., :6], expected)


def held(unet: nn.Module, rows, regions: Tensor, strength: float):
    """The UNet with every cross-attention held."""
    return TappedTorch.of(unet).tapped(holding(rows, regions, strength), cross_attentions(unet))


def test_attention_is_softmax_of_biased_logits(unet, inputs, regions) -> None:
    """Outside, odds of a token against an ordinary word fall by e^strength; inside they stay."""
    seen: list[Tensor] = []
    name = next(iter(cross_attentions(unet)))

    def watching(attention: Attention, run) -> Tensor:
        scale = attention.scale or attention.query.shape[-1] ** -0.5
        logits = attention.query @ attention.key.transpose(-1, -2) * scale
        seen.append(logits.log_softmax(-1))
        return run(attention)

    with TappedTorch.of(unet).tapped(watching, [name]):
        unet(*inputs)
        with held(unet, ROWS, regions, 3.0):  # set last, so called first
            unet(*inputs)
    plain, after = (scores[1] for scores in seen)
    change = (after - after[..., :1]) - (plain - plain[..., :1])  # of the odds against column 0
    outside = (1 - regions[1].flatten()).expand(len(plain), -1)
    torch.testing.assert_close(change[..., 2], -3 * outside, atol=1e-4, rtol=0)
    torch.testing.assert_close(change[..., 3], change[..., 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(change[..., 6], -3 * (1 - outside), atol=1e-4, rtol=0)
    torch.testing.assert_close(change[..., 7], torch.zeros_like(outside), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0][0], seen[1][0])


def test_a_layer_that_sees_no_whole_picture_is_refused(unet, inputs, regions) -> None:
    name = next(iter(cross_attentions(unet)))
    layer = unet.get_submodule(name)
    merging = layer.register_forward_pre_hook(lambda _, args: (args[0][:, ::2], *args[1:]))
    with (
        merging,
        held(unet, ROWS, regions, 3.0),
        pytest.raises(UnsupportedModelError, match="merges, tiles or splits"),
    ):
        unet(*inputs)


def test_a_row_without_tokens_draws_as_before(unet, inputs, regions) -> None:
    plain = unet(*inputs).sample
    with held(unet, ROWS, regions, 5.0):
        after = unet(*inputs).sample
    torch.testing.assert_close(after[0], plain[0])
    assert (after[1] - plain[1]).abs().max() > 1e-4


def test_a_token_held_to_everything_draws_as_before(unet, inputs) -> None:
    rows = ((), (Focus("ada", "subject", (2, 3)),))
    plain = unet(*inputs).sample
    with held(unet, rows, torch.ones(2, 1, *SIZE), 5.0):
        torch.testing.assert_close(unet(*inputs).sample, plain)


def test_a_mask_that_is_there_is_kept(unet, inputs, regions) -> None:
    """As where a text encoder's padding is masked out."""
    mask = torch.ones(2, 9)
    mask[:, 7:] = 0
    with held(unet, ROWS, regions, 0.0):
        kept = unet(*inputs, encoder_attention_mask=mask).sample
    torch.testing.assert_close(kept, unet(*inputs, encoder_attention_mask=mask).sample)


def test_nothing_is_left_behind_after_an_exception(unet, inputs, regions) -> None:
    plain = unet(*inputs).sample
    with pytest.raises(KeyError), held(unet, ROWS, regions, 5.0):
        unet(*inputs)
        raise KeyError("cancelled")
    assert torch.equal(unet(*inputs).sample, plain)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_attention_outside_falls_in_the_whole_network(unet, inputs, regions) -> None:
    """A recorder set last sees the layer without its bias; deeper layers still show its effect."""
    with captured(TappedTorch.of(unet)) as capture:
        with capture.recording():
            unet(*inputs)
        plain = capture.maps([{}, {"ada": [2, 3]}], SIZE)
        with held(unet, ROWS, regions, 5.0), capture.recording():
            unet(*inputs)
        after = capture.maps([{}, {"ada": [2, 3]}], SIZE)
    assert torch.equal(plain[0].values, after[0].values)
    assert not torch.equal(plain[-1].values, after[-1].values)
