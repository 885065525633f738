"""MagicFace in ComfyUI: any sampler, nothing left behind, and the same as on diffusers' UNet."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of a man with a hat"


def image(seed: int, side: int = 64) -> torch.Tensor:
    return torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def nodes_of(pack) -> SimpleNamespace:
    module = pack("nodes.magicface")
    return SimpleNamespace(
        reference=module.MagiCaptureAddMagicFaceReference,
        apply=module.MagiCaptureApplyMagicFace,
        regions=module.MagiCapturePreviewMagicFaceRegions,
    )


def reference(nodes_of, words="man", seed=0, weight=3.0, **changes):
    given = {"image": image(seed), "part": "whole picture", "photo": 1, **changes}
    return nodes_of.reference.execute(words, f"a photo of a {words}", weight, **given)[0]


def applied(nodes_of, tiny, magicface, text=TEXT, **changes):
    given = {
        "reference_size": 64,
        "switch": 0.4,
        "stop": 1.0,
        "others": 0.9,
        "to_foreground": False,
        "region_guidance": True,
        "reference_seed": 0,
        **changes,
    }
    return nodes_of.apply.execute(tiny.model, tiny.clip, tiny.vae, magicface, text, **given)


def drawn(model, tiny, positive=None, *, sampler="euler", steps=2, batch=1, cfg=5.0, seed=3):
    import nodes

    if positive is None:
        positive = nodes.CLIPTextEncode().encode(tiny.clip, TEXT)[0]
    negative = nodes.CLIPTextEncode().encode(tiny.clip, "")[0]
    latent = nodes.EmptyLatentImage().generate(64, 64, batch)[0]
    result = nodes.KSampler().sample(
        model, seed, steps, cfg, sampler, "normal", positive, negative, latent
    )
    return result[0]["samples"]


def drawn_custom(model, tiny, positive, sampler="euler", steps=2, seed=3):
    """By SamplerCustomAdvanced."""
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    import nodes

    negative = nodes.CLIPTextEncode().encode(tiny.clip, "")[0]
    latent = nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    run = getattr(custom.SamplerCustomAdvanced, "execute", None)
    arguments = (
        custom.Noise_RandomNoise(seed),
        guider,
        comfy.samplers.sampler_object(sampler),
        comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), "normal", steps
        ).cpu(),
        latent,
    )
    result = run(*arguments) if run else custom.SamplerCustomAdvanced().sample(*arguments)
    return result[0]["samples"]


def hooks(model) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks)
        for m in model.model.diffusion_model.modules()
    )


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral"])
def test_references_change_the_picture_and_leave_the_model_bit_equal(nodes_of, tiny, sampler):
    plain = drawn(tiny.model, tiny, sampler=sampler)
    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    with_reference = drawn(model, tiny, positive, sampler=sampler)
    assert (with_reference - plain).abs().max() > 1e-3
    assert torch.equal(drawn(model, tiny, positive, sampler=sampler), with_reference)
    assert torch.equal(drawn(tiny.model, tiny, sampler=sampler), plain)
    assert hooks(model) == 0


def test_custom_sampling_draws_the_same(nodes_of, tiny):
    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    torch.testing.assert_close(drawn_custom(model, tiny, positive), drawn(model, tiny, positive))


def test_little_memory_draws_the_same(nodes_of, tiny, scarce):
    weight = "diffusion_model.output_blocks.0.1.transformer_blocks.0.attn1.to_k.weight"
    tiny.model = tiny.model.clone()
    own = tiny.model.model.state_dict()[weight]
    assert tiny.model.add_patches({weight: ("diff", (0.1 * torch.ones_like(own),))}, 1.0)
    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    enough = drawn(model, tiny, positive, steps=3)
    little = drawn(scarce(model), tiny, positive, steps=3)
    layer = tiny.model.model.get_submodule(weight.removesuffix(".weight"))
    assert len(layer.weight_function) == 1, "the LoRA waits for its use"
    torch.testing.assert_close(little, enough, rtol=1e-3, atol=1e-3)
    assert (enough - drawn(tiny.model, tiny, positive, steps=3)).abs().max() > 1e-2


def test_every_scheduler_switches_at_the_releases_noise_level(nodes_of, tiny):
    """Its 50 steps lay out down to t = 581, sigma 2.135; a step's further passes stay with it."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    model = applied(nodes_of, tiny, reference(nodes_of)).args[0]
    (wrappers,) = model.wrappers[WrappersMP.OUTER_SAMPLE].values()
    patch = wrappers[0].__self__
    sampling = model.get_model_object("model_sampling")
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        for steps in (12, 20):
            levels = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
            for began, ends in pairwise(levels):
                expected = "layout" if began > 2.134 else "details"
                for sigma in (began, (began + ends) / 2, began * 0.6 + ends * 0.4):
                    stage = patch._stage_at(sigma[None], {"sample_sigmas": levels})
                    assert stage == expected, (scheduler, steps, float(sigma))


@pytest.mark.parametrize("changes", [{"stop": 0.0}, {"switch": 0.0, "others": 2.0}])
def test_stopped_at_once_or_without_a_region_it_is_bit_equal(nodes_of, tiny, changes):
    """The second: a word that never wins a pixel, with no layout stage; guidance left alone."""
    model, positive, _ = applied(
        nodes_of, tiny, reference(nodes_of), region_guidance=False, **changes
    ).args
    if changes.get("others") == 2.0:
        found = nodes_of.regions.execute(
            model, positive, positive, {"samples": torch.zeros(1, 4, 8, 8)}, image(0), 0.5
        ).args
        assert "no region" in found[2]
    assert torch.equal(drawn(model, tiny, positive), drawn(tiny.model, tiny))


def test_a_batch_is_drawn_as_its_pictures_alone(nodes_of, tiny):
    """The references serve every picture; each has regions of its own."""
    import nodes

    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(3))
    negative = nodes.CLIPTextEncode().encode(tiny.clip, "")[0]

    def run(rows):
        import comfy.sample

        zeros = torch.zeros_like(noise[rows])
        return comfy.sample.sample(
            model, noise[rows], 2, 5.0, "euler", "normal", positive, negative, zeros, seed=3
        )

    both = run(slice(0, 2))
    torch.testing.assert_close(both[:1], run(slice(0, 1)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1:], run(slice(1, 2)), atol=1e-4, rtol=1e-4)


def test_prompt_and_negative_in_passes_of_their_own_draw_the_same(nodes_of, tiny, monkeypatch):
    """As ComfyUI does where memory is short."""
    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    together = drawn(model, tiny, positive)
    passes = []
    tiny.model.model.diffusion_model.register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(tiny.model.model, "memory_required", lambda *_, **__: 1e30)
    torch.testing.assert_close(drawn(model, tiny, positive), together, atol=1e-4, rtol=1e-4)
    assert len(passes) == 2 * 3  # the references', the prompt's, the negative's


@pytest.mark.parametrize("switch", [0.0, 1.0], ids=["details", "layout"])
def test_extra_words_see_the_references_as_the_prompt_does(nodes_of, tiny, pack, switch):
    """Encode Prompt's (1 - s) of the prompt and s of it with more words, each alone."""
    given = {"switch": switch, "region_guidance": False, "others": 0.05}
    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of), **given).args
    encode = pack("nodes.sampling").MagiCaptureEncodePrompt.execute

    def one_step(conditioning, patched=model):
        return drawn(patched, tiny, conditioning, steps=1, cfg=1.0, batch=2)

    with_extra = encode(tiny.clip, TEXT, "", "", extra="in the rain")[0]
    whole = encode(tiny.clip, f"{TEXT}, in the rain", "", "")[0]
    expected = 2 * one_step(whole) - one_step(positive)
    torch.testing.assert_close(one_step(with_extra), expected, atol=1e-3, rtol=1e-3)
    assert (one_step(whole) - one_step(whole, tiny.model)).abs().max() > 0.01


def test_regions_are_the_pictures_where_there_are_extra_words(nodes_of, tiny, pack):
    model, *_ = applied(nodes_of, tiny, reference(nodes_of)).args
    encode = pack("nodes.sampling").MagiCaptureEncodePrompt.execute
    positive = encode(tiny.clip, TEXT, "", "", extra="in the rain")[0]
    negative = encode(tiny.clip, "", "", "")[0]
    latent = {"samples": drawn(model, tiny, positive, batch=2)}
    shown = nodes_of.regions.execute(
        model, positive, negative, latent, torch.rand(2, 64, 64, 3), 0.5
    )
    assert len(shown.args[0]) == len(shown.args[1]) == 2  # one concept in each picture


def test_references_are_seen_under_dual_guidance(nodes_of, tiny):
    """DualCFGGuider, whose negative prompt comes first, and whose rows are three."""
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    import nodes

    encode = nodes.CLIPTextEncode().encode
    negative, other = (encode(tiny.clip, text)[0] for text in ("", "a dog"))

    def run(model, positive):
        guider = custom.Guider_DualCFG(model)
        guider.set_conds(other, positive, negative)
        guider.set_cfg(0.0, 5.0)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        sigmas = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), "normal", 2
        )
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)

    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of), region_guidance=False).args
    # Of what is guided by nothing (0) nothing is left; so this is CFG, as KSampler has it.
    torch.testing.assert_close(
        run(model, positive), drawn(model, tiny, positive), atol=1e-3, rtol=1e-3
    )
    assert (run(model, positive) - run(tiny.model, positive)).abs().max() > 1e-3


def test_cancel_leaves_the_model_clean(nodes_of, tiny):
    import comfy.sample
    from comfy.model_management import InterruptProcessingException

    import nodes

    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    negative = nodes.CLIPTextEncode().encode(tiny.clip, "")[0]
    plain, whole = drawn(tiny.model, tiny), drawn(model, tiny, positive)

    def cancel(step, *_):
        if step == 1:
            raise InterruptProcessingException

    noise = torch.randn(1, 4, 8, 8)
    with pytest.raises(InterruptProcessingException):
        comfy.sample.sample(
            model, noise, 2, 5.0, "euler", "normal", positive, negative, noise, callback=cancel
        )
    assert hooks(model) == 0
    assert torch.equal(drawn(tiny.model, tiny), plain)
    assert torch.equal(drawn(model, tiny, positive), whole)


def test_nothing_is_held_after_sampling(nodes_of, tiny):
    import gc

    def tensors():
        return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]

    before = {id(t) for t in tensors()}
    model, positive, _ = applied(nodes_of, tiny, reference(nodes_of)).args
    held = {id(t) for t in tensors()} - before
    drawn(model, tiny, positive)
    gc.collect()
    left = sum(t.numel() for t in tensors() if id(t) not in before | held and t.ndim == 2)
    assert left < 64 * 32  # keys of one layer


def test_regions_are_shown_in_colour_and_as_masks(nodes_of, tiny):
    two = reference(nodes_of, "hat", seed=1, previous=reference(nodes_of))
    model, positive, report = applied(nodes_of, tiny, two).args
    latents = drawn(model, tiny, positive, batch=2)
    pictures = torch.rand(2, 64, 64, 3)
    shown, masks, text = nodes_of.regions.execute(
        model, positive, positive, {"samples": latents}, pictures, 0.5
    ).args
    assert shown.shape == pictures.shape
    assert masks.shape == (4, 64, 64)
    assert not ((masks[0] > 0) & (masks[1] > 0)).any()
    assert text.count("picture") >= 4
    assert "man: weight 3, tokens 5" in report
    assert "output_blocks" in report


def test_words_may_be_several_weighted_or_a_learned_token(nodes_of, tiny, pack):
    vectors = {"anna": {"clip_l": torch.randn(2, 32)}}
    adapter = pack("magicapture.adapters").Adapter({}, vectors, "sd1")
    clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)[1]
    trained = SimpleNamespace(model=tiny.model, clip=clip, vae=tiny.vae)
    text = "a photo of a (young man:1.2) named embedding:anna, a man"
    own = reference(nodes_of, "young man, embedding:anna")
    report = applied(nodes_of, trained, own, text).args[2]
    assert "tokens 5, 6, 8, 9" in report


def test_mistakes_are_told_with_what_to_do(nodes_of, tiny, pack):
    input_error = pack("magicapture.errors").InputError
    with pytest.raises(input_error, match="Apply MagicFace: The prompt is without 'cat'"):
        applied(nodes_of, tiny, reference(nodes_of, "cat"))
    with pytest.raises(input_error, match="a word in common"):
        applied(nodes_of, tiny, reference(nodes_of, previous=reference(nodes_of)))
    with pytest.raises(input_error, match="has references already"):
        model = applied(nodes_of, tiny, reference(nodes_of)).args[0]
        twice = SimpleNamespace(model=model, clip=tiny.clip, vae=tiny.vae)
        applied(nodes_of, twice, reference(nodes_of, "hat"))
    black, white = torch.zeros(1, 64, 64), torch.ones(1, 64, 64)
    for part in ("inside mask", "outside mask"):
        with pytest.raises(input_error, match="Add MagicFace Reference: The input 'part'"):
            reference(nodes_of, part=part)
        with pytest.raises(input_error, match="'mask' marks nothing"):
            reference(nodes_of, mask=black, part=part)
    with pytest.raises(input_error, match="white everywhere"):
        reference(nodes_of, mask=white, part="outside mask")
    assert reference(nodes_of, mask=black, part="whole picture")[0].mask is None
    with pytest.raises(input_error, match="Photo 3 was asked for, but 'mask' holds 2"):
        reference(nodes_of, image=image(0).repeat(3, 1, 1, 1), mask=white.repeat(2, 1, 1), photo=3)
    with pytest.raises(input_error, match="holds 1"):
        reference(nodes_of, photo=2)
    with pytest.raises(input_error, match="no references"):
        empty = {"samples": torch.zeros(1, 4, 8, 8)}
        nodes_of.regions.execute(tiny.model, [], [], empty, image(0), 0.5)


def test_bypassed_it_hands_on_model_and_prompt(nodes_of, tiny):
    """The frontend joins a bypassed node's output to the first input of the same type."""
    import nodes

    schema = nodes_of.apply.define_schema()
    types = [given.get_io_type() for given in schema.inputs]
    sources = [schema.inputs[types.index(out.get_io_type())].id for out in schema.outputs[:2]]
    assert sources == ["model", "positive"]
    encoded = nodes.CLIPTextEncode().encode(tiny.clip, TEXT)[0]
    handed = applied(nodes_of, tiny, reference(nodes_of), positive=encoded).args[1]
    assert handed is encoded


def test_a_reference_set_serves_with_its_face_mask(nodes_of, pack):
    mask = torch.zeros(1, 64, 64)
    mask[:, :20] = 1
    photos = (torch.rand(3, 64, 64), torch.rand(3, 64, 64))
    references = pack("magicapture.data").ReferenceSet.of(photos, face_masks=(mask, mask))
    inside = {"image": None, "part": "inside mask"}
    own = reference(nodes_of, **inside, references=references, photo=2)[0]
    assert torch.equal(own.image, photos[1])
    assert torch.equal(own.mask, mask)
    around = reference(nodes_of, image=None, references=references, part="outside mask")[0]
    assert torch.equal(around.mask, 1 - mask)


def test_diffusers_unet_gives_the_same_by_the_same_weights(pack, make, tiny):
    """One pass with references in each stage, in both UNets, by one and the same core."""
    core = pack("magicapture.magicface")
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    with torch.inference_mode(False):
        theirs = make.diffusers_twin(tiny.model)
    noisy, context = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    photo = torch.rand(3, 64, 64)
    reference = core.Reference(photo, None, ("man",), "a man")
    rows = core.reference_rows([reference], 64, 8, lambda _: torch.randn(1, 4, 8, 8))
    t = torch.tensor([300, 300])

    def ours(z, c):
        return backbone.unet(z, t[: len(z)].float(), context=c)

    def other(z, c):
        return theirs(z, t[: len(z)], encoder_hidden_states=c).sample

    def run(network, predict, stage):
        settings = core.MagicFaceSettings(others=0.2)
        session = core.Session(network, rows, [[5, 6]], 77, settings)
        keys = session.keys(300.0, lambda some: predict(rows.latents[some], context[:1]))
        with session.drawing(stage, keys, core.Rows([1], [0])):
            drawn = predict(noisy, context)
        return drawn, session.seen.regions

    plain = other(noisy, context)
    for stage in ("layout", "details"):
        one, regions = run(backbone.attention, ours, stage)
        two, same = run(pack("magicapture.attention").TappedTorch.of(theirs), other, stage)
        assert torch.equal(regions, same)
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
        assert (two[1] - plain[1]).abs().max() > 1e-3
        torch.testing.assert_close(two[0], plain[0])  # the negative row
