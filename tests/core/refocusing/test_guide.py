"""Refocusing in our own samplers: bit-equal at zero, held when not, nothing left behind."""

from __future__ import annotations

import pytest
import torch

from magicapture.errors import InputError
from magicapture.refocusing import Focus, PromptRefocuser, RefocusGuidance, foci
from magicapture.sampling import SamplingSettings, sample_latents
from magicapture.tokens import Concept, Prompt, TokenVectors

TEXT = "a photo of a <ada> woman in the <ink> style"
CONCEPTS = (Concept("ada", "subject", "woman", vectors=2), Concept("ink", "style"))
BIAS = RefocusGuidance(bias=5.0)
GRADIENT = RefocusGuidance(bias=0, gradient=0.05, end=0.5, iterations=2, threshold=0)


@pytest.fixture
def vectors() -> TokenVectors:
    return TokenVectors(
        {"ada": {"clip_l": torch.randn(2, 32)}, "ink": {"clip_l": torch.randn(1, 32)}}
    )


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = 1
    return mask


@pytest.fixture
def draw(backbone, vectors):
    def draw(guide=None, sampler="euler_a", guidance=3.0, texts=(TEXT,), **edit):
        size = {"width": 128, "height": 128}
        settings = SamplingSettings(sampler, steps=4, guidance=guidance, **size, **edit)
        return sample_latents(backbone, list(texts), vectors, settings, seed=5, guide=guide)

    return draw


@pytest.fixture
def rows(backbone, vectors):
    prompts = [Prompt(TEXT)]
    return foci(backbone, prompts, backbone.encode_prompts(prompts, vectors), vectors, CONCEPTS)


def test_tokens_are_found_with_their_words(rows, backbone) -> None:
    # start a photo of a | ada ada | woman in the | ink | style
    assert rows == [
        (Focus("ada", "subject", (5, 6), (7,)), Focus("ink", "style", (10,))),
    ]


@pytest.mark.parametrize("sampler", ["euler_a", "ddim", "dpmpp_2m"])
def test_at_zero_strength_the_picture_is_bit_equal(draw, backbone, rows, mask, sampler) -> None:
    plain = draw(sampler=sampler)
    for region in (mask, None):
        guide = PromptRefocuser(backbone, rows, RefocusGuidance(bias=0, gradient=0), region)
        assert torch.equal(draw(guide, sampler), plain)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_both_the_prompt_and_its_edit_are_held(draw, backbone, rows, mask, guidance) -> None:
    """Guided alike, prompt and edit are the edited prompt alone: held, the tokens are in both."""
    edited = {"edit": "with a hat", "edit_strength": guidance}
    held = draw(PromptRefocuser(backbone, rows, BIAS, mask), "ddim", guidance, **edited)
    whole = PromptRefocuser(backbone, rows, BIAS, mask)
    alone = draw(whole, "ddim", guidance, (f"{TEXT}, with a hat",))
    torch.testing.assert_close(held, alone, rtol=1e-3, atol=1e-3)
    found = PromptRefocuser(backbone, rows, BIAS)
    draw(found, "ddim", guidance, **edited)
    assert [len(step) for step in found.seen] == [1] * 4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("settings", [BIAS, GRADIENT], ids=["bias", "gradient"])
def test_the_picture_changes_and_the_model_does_not(
    draw, backbone, rows, mask, settings, guidance
) -> None:
    before = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    plain = draw(guidance=guidance)
    found = PromptRefocuser(backbone, rows, settings)
    given = PromptRefocuser(backbone, rows, settings, mask)
    pictures = [draw(guide, guidance=guidance) for guide in (given, found)]
    assert all(p.isfinite().all() and (p - plain).abs().max() > 1e-3 for p in pictures)
    assert len(given.seen) == 0 and len(found.seen) == 4
    assert found.seen[0][0].shape == (16, 16)
    assert torch.equal(draw(guidance=guidance), plain)
    assert all(torch.equal(v, before[n]) for n, v in backbone.unet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.unet.modules())


def test_the_gradient_stays_in_its_window(draw, backbone, rows, mask) -> None:
    passes = []
    backbone.unet.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    draw(PromptRefocuser(backbone, rows, GRADIENT, mask))
    assert passes == [1, 1, 2] * 2 + [2] * 2, "two moves in each of the first two steps"


def test_saving_memory_changes_nothing(draw, backbone, rows, mask) -> None:
    saving = RefocusGuidance(**{**vars(GRADIENT), "save_memory": True})
    plain, saved = (draw(PromptRefocuser(backbone, rows, s, mask)) for s in (GRADIENT, saving))
    torch.testing.assert_close(saved, plain)


def test_each_prompt_has_its_own_region(draw, backbone, vectors, rows, mask) -> None:
    """A prompt without tokens, in one batch with one that has them, is drawn as alone."""
    texts = ["a photo of a cat", TEXT]
    alone = draw(texts=texts)
    guide = PromptRefocuser(backbone, [(), *rows], BIAS, mask)
    both = draw(guide, texts=texts)
    torch.testing.assert_close(both[0], alone[0], rtol=1e-3, atol=1e-3)
    assert (both[1] - alone[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match="3 regions for 2 prompts"):
        PromptRefocuser(backbone, [(), *rows], BIAS, mask.expand(3, -1, -1, -1))
