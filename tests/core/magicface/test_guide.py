"""MagicFace in our own samplers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.magicface import MagicFaceSettings, Reference, ReferenceGuide
from magicapture.sampling import SamplingSettings, sample_latents

PROMPT = "a photo of a man with a hat"
SAMPLING = SamplingSettings(sampler="ddim", steps=2, guidance=5.0, width=64, height=64)
PLAIN_GUIDANCE = MagicFaceSettings(region_guidance=False)


@pytest.fixture
def backbone(make_backbone):
    return make_backbone(
        unet={
            "block_out_channels": (32, 32),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        }
    )


def reference(word="man", mask=None, weight=3.0, seed=0) -> Reference:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return Reference(image, mask, (word,), f"a photo of a {word}", weight)


def draw(backbone, references=None, settings=None, prompts=PROMPT, sampling=SAMPLING, seed=1):
    guide = references and ReferenceGuide(backbone, references, PROMPT, None, settings, side=64)
    return sample_latents(backbone, prompts, None, sampling, seed=seed, guide=guide), guide


def test_a_reference_changes_the_picture_and_leaves_the_model_as_it_was(backbone):
    plain, _ = draw(backbone)
    changed, _ = draw(backbone, [reference()])
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(draw(backbone)[0], plain)
    assert torch.equal(draw(backbone, [reference()])[0], changed)


@pytest.mark.parametrize("switch", [0.0, 1.0])
@pytest.mark.parametrize(
    "nothing", [{"mask": torch.zeros(1, 64, 64)}, {"weight": float("-inf")}], ids=["mask", "weight"]
)
def test_empty_masks_or_weights_of_minus_infinity_are_bit_equal_to_none(backbone, nothing, switch):
    settings = replace(PLAIN_GUIDANCE, switch=switch)
    references = [reference(**nothing), reference("hat", seed=1, **nothing)]
    assert torch.equal(draw(backbone, references, settings)[0], draw(backbone)[0])


def test_the_references_pass_once_a_step_with_half_the_guidances_rows(backbone):
    rows = []
    backbone.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    draw(backbone, [reference(), reference("hat", seed=1)], prompts=[PROMPT] * 3)
    assert rows == [2, 6] * 2  # two references, however many pictures


def test_a_noise_level_that_comes_again_costs_nothing(backbone):
    guide = ReferenceGuide(backbone, [reference()], PROMPT, side=64)
    passes = []
    for level in (900.0, 900.0, 500.0, 900.0, 100.0, 500.0, 900.0):
        guide.session.keys(level, lambda rows: _run(backbone, passes))
    assert len(passes) == 4  # the last two levels are kept


def _run(backbone, passes):
    passes.append(1)
    context = torch.zeros(1, 77, 32)
    backbone.unet(torch.zeros(1, 4, 8, 8), torch.tensor([1]), encoder_hidden_states=context)


def test_a_picture_is_the_same_alone_and_in_a_batch(backbone):
    both, _ = draw(backbone, [reference()], prompts=[PROMPT] * 2)
    alone, _ = draw(backbone, [reference()], seed=2)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_hooks_are_gone_also_after_an_exception(backbone):
    def stop(done, steps, latents):
        raise KeyboardInterrupt

    guide = ReferenceGuide(backbone, [reference()], PROMPT, side=64)
    with pytest.raises(KeyboardInterrupt):
        sample_latents(backbone, PROMPT, None, SAMPLING, callback=stop, guide=guide)
    for module in backbone.unet.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_concept_without_a_region_is_reported(backbone):
    _, guide = draw(backbone, [reference()], MagicFaceSettings(switch=0.0, others=2.0))
    assert guide.session.missing() == ["man"]
    _, guide = draw(backbone, [reference()], MagicFaceSettings(switch=0.0, others=0.05))
    assert guide.session.missing() == []
    assert guide.session.seen.regions.any()


def test_regions_are_cut_to_the_foreground_where_asked(backbone):
    settings = MagicFaceSettings(others=0.05)
    for cut in (False, True):
        _, guide = draw(backbone, [reference()], replace(settings, to_foreground=cut))
        seen = guide.session.seen
        assert (seen.regions & seen.foreground).any()
        assert (seen.regions & ~seen.foreground).any() != cut


def test_without_guidance_there_is_no_negative_row(backbone):
    sampling = replace(SAMPLING, guidance=1.0)
    plain, _ = draw(backbone, sampling=sampling)
    changed, guide = draw(backbone, [reference()], sampling=sampling)
    assert (changed - plain).abs().max() > 1e-3
    assert guide.session.seen.foreground is None


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_references_are_seen_by_the_prompt_and_its_edit(backbone, switch):
    """Guided alike, prompt and edit are the edited prompt alone, references included."""
    settings = replace(PLAIN_GUIDANCE, switch=switch)
    edited = replace(SAMPLING, edit="in the rain", edit_strength=SAMPLING.guidance)
    held, guide = draw(backbone, [reference()], settings, sampling=edited)
    whole = f"{PROMPT}, in the rain"
    other = ReferenceGuide(backbone, [reference()], whole, None, settings, side=64)
    alone = sample_latents(backbone, whole, None, SAMPLING, seed=1, guide=other)
    torch.testing.assert_close(held, alone, rtol=1e-3, atol=1e-3)
    plain, _ = draw(backbone, sampling=edited)
    assert (held - plain).abs().max() > 1e-3
    guided, guide = draw(backbone, [reference()], sampling=edited)
    assert len(guide.session.seen.regions) == 1 and guided.isfinite().all()
