"""The bias against softmax by hand, on diffusers' UNet; nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from magicapture.attention import captured, cross_attentions
from magicapture.refocusing import Focus, attention_bias, biased

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
    found = attention_bias(ROWS[1:], region, 4.0, 8)
    expected = torch.zeros(1, 4, 8)
    expected[0, :, 2] = expected[0, :, 3] = torch.tensor([0.0, -3.0, -4.0, -4.0])
    expected[0, :, 6] = torch.tensor([-4.0, -1.0, 0.0, 0.0])
    assert torch.equal(found, expected)


def test_attention_is_softmax_of_biased_logits(unet, inputs, regions) -> None:
    """Outside, odds of a token against an ordinary word fall by e^strength; inside they stay."""
    seen: dict[str, dict[str, Tensor]] = {"plain": {}, "biased": {}}
    name, layer = next(iter(cross_attentions(unet).items()))
    layer.set_processor(AttnProcessor())
    scores = layer.get_attention_scores

    def keep(*args: Tensor) -> Tensor:
        probabilities = scores(*args)
        seen[run][name] = probabilities.unflatten(0, (2, layer.heads))
        return probabilities

    layer.get_attention_scores = keep
    run = "plain"
    unet(*inputs)
    run = "biased"
    with biased(unet, ROWS, regions, 3.0):
        unet(*inputs)
    plain, held = (seen[key][name][1].log() for key in ("plain", "biased"))
    change = (held - held[..., :1]) - (plain - plain[..., :1])  # of the odds against column 0
    outside = 1 - regions[1].flatten()
    torch.testing.assert_close(change[..., 2], (-3 * outside).expand(layer.heads, -1))
    torch.testing.assert_close(change[..., 3], change[..., 2])
    torch.testing.assert_close(change[..., 6], (-3 * (1 - outside)).expand(layer.heads, -1))
    torch.testing.assert_close(change[..., 7], torch.zeros_like(change[..., 7]))
    torch.testing.assert_close(seen["plain"][name][0], seen["biased"][name][0])


def test_a_row_without_tokens_draws_as_before(unet, inputs, regions) -> None:
    plain = unet(*inputs).sample
    with biased(unet, ROWS, regions, 5.0):
        held = unet(*inputs).sample
    torch.testing.assert_close(held[0], plain[0])
    assert (held[1] - plain[1]).abs().max() > 1e-4


def test_a_token_held_to_everything_draws_as_before(unet, inputs) -> None:
    rows = ((), (Focus("ada", "subject", (2, 3)),))
    plain = unet(*inputs).sample
    with biased(unet, rows, torch.ones(2, 1, *SIZE), 5.0):
        torch.testing.assert_close(unet(*inputs).sample, plain)


def test_a_mask_that_is_there_is_kept(unet, inputs, regions) -> None:
    """As where a text encoder's padding is masked out."""
    mask = torch.ones(2, 9)
    mask[:, 7:] = 0
    with biased(unet, ROWS, regions, 0.0):
        kept = unet(*inputs, encoder_attention_mask=mask).sample
    torch.testing.assert_close(kept, unet(*inputs, encoder_attention_mask=mask).sample)


def test_nothing_is_left_behind_after_an_exception(unet, inputs, regions) -> None:
    plain = unet(*inputs).sample
    with pytest.raises(KeyError), biased(unet, ROWS, regions, 5.0):
        unet(*inputs)
        raise KeyError("cancelled")
    assert torch.equal(unet(*inputs).sample, plain)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_attention_outside_falls_in_the_whole_network(unet, inputs, regions) -> None:
    """Maps from queries and keys know of no bias; deeper layers still show its effect."""
    with captured(unet) as capture:
        with capture.recording():
            unet(*inputs)
        plain = capture.maps([{}, {"ada": [2, 3]}], SIZE)
        with capture.recording(), biased(unet, ROWS, regions, 5.0):
            unet(*inputs)
        held = capture.maps([{}, {"ada": [2, 3]}], SIZE)
    assert torch.equal(plain[0].values, held[0].values)
    assert not torch.equal(plain[-1].values, held[-1].values)
