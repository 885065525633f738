"""Refocusing in ComfyUI's samplers: tokens found, held, and the model left as it was."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of embedding:ada woman in the embedding:ink style"


@pytest.fixture
def embeddings(make) -> None:
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(1)
        for name, count in (("ada", 2), ("ink", 1)):
            vectors = torch.randn(count, 32, generator=generator)
            save_file({"emb_params": vectors}, make.embeddings / f"{name}.safetensors")


@pytest.fixture
def concepts(pack, embeddings):
    concept = pack("magicapture.tokens").Concept
    return (concept("ada", "subject", "woman"), concept("ink", "style"))


@pytest.fixture
def mask() -> torch.Tensor:
    with torch.inference_mode(False):
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 16:48, 16:40] = 1
        return mask


@pytest.fixture
def settings(pack):
    return pack("magicapture.refocusing").RefocusGuidance


BIAS = {"bias": 5.0, "factors": (1, 2)}
GRADIENT = {"bias": 0.0, "gradient": 0.05, "end": 0.7, "threshold": 0.0, "factors": (1, 2)}
BOTH = {**GRADIENT, "bias": 5.0, "iterations": 2}


def draw(model, positive, negative, sampler="euler", cfg=4.0, batch=1, latent=None, **more):
    import nodes

    latent = latent or nodes.EmptyLatentImage().generate(64, 64, batch)[0]
    ksampler = nodes.KSampler()
    return ksampler.sample(model, 3, 3, cfg, sampler, "normal", positive, negative, latent, **more)[
        0
    ]["samples"]


@pytest.fixture
def prompts(pack, tiny, concepts):
    import nodes

    positive = pack.comfy.encode_marked(tiny.clip, TEXT, concepts)
    negative = nodes.CLIPTextEncode().encode(tiny.clip, "blurred")[0]
    return positive, negative


# -- tokens -----------------------------------------------------------------------------------


def marks(pack, conditioning):
    return conditioning[0][1][pack("nodes._comfy.marks").TOKENS]


def test_encoding_equals_the_stock_node_and_knows_the_columns(pack, tiny, concepts) -> None:
    import nodes

    focus = pack("magicapture.refocusing").Focus
    found = pack.comfy.encode_marked(tiny.clip, TEXT, concepts, "photo", "style")
    stock = nodes.CLIPTextEncode().encode(tiny.clip, TEXT)[0]
    assert torch.equal(found[0][0], stock[0][0])
    assert marks(pack, found) == (  # start a photo of | ada ada | woman in the | ink | style
        focus("ada", "subject", (4, 5), (6,)),
        focus("ink", "style", (9,)),
        focus("photo", "subject", (2,)),
        focus("style", "style", (10,)),
    )


def test_tokens_behind_the_first_77_are_found(pack, tiny, concepts) -> None:
    text = "word " * 80 + "(embedding:ada:1.3) woman"
    found = pack.comfy.encode_marked(tiny.clip, text, concepts)
    ((ada,), context) = marks(pack, found), found[0][0]
    assert context.shape[1] == 154
    start = 77 + 1 + 80 - 75  # the second chunk: its own start, and the words left over
    assert ada.columns == (start, start + 1) and ada.word == (start + 2,)


def test_a_prompt_without_the_tokens_is_refused(pack, tiny, concepts) -> None:
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match="no embedding:ada or embedding:ink"):
        pack.comfy.encode_marked(tiny.clip, "a photo of a woman", concepts)
    with pytest.raises(error, match="no 'hat'"):
        pack.comfy.encode_marked(tiny.clip, TEXT, concepts, "hat")


# -- sampling ---------------------------------------------------------------------------------


def state(model) -> dict[str, int]:
    """What a UNet's tensors are, and what hangs on its modules."""
    unet = model.model.diffusion_model
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())
    own = {name: id(p) for name, p in unet.named_parameters()}
    return {**own, "hooks": hooks, "own": sum(len(vars(m)) for m in unet.modules())}


@pytest.mark.parametrize("given", [True, False])
def test_zero_strength_is_bit_equal(pack, tiny, prompts, settings, mask, given) -> None:
    patched = pack.comfy.refocus(tiny.model, settings(bias=0, gradient=0), mask if given else None)
    assert torch.equal(draw(patched, *prompts), draw(tiny.model, *prompts))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("how", [BIAS, GRADIENT, BOTH], ids=["bias", "gradient", "both"])
def test_the_picture_changes_and_the_model_does_not(
    pack, tiny, prompts, settings, mask, how, given
) -> None:
    plain, before = draw(tiny.model, *prompts), state(tiny.model)
    patched = pack.comfy.refocus(tiny.model, settings(**how), mask if given else None)
    held = draw(patched, *prompts)
    assert held.isfinite().all() and (held - plain).abs().max() > 1e-4
    assert torch.equal(draw(patched, *prompts), held)
    assert state(tiny.model) == before
    assert torch.equal(draw(tiny.model, *prompts), plain)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "uni_pc", "euler_cfg_pp"])
def test_any_sampler(pack, tiny, prompts, settings, mask, sampler) -> None:
    plain = draw(tiny.model, *prompts, sampler=sampler)
    held = draw(pack.comfy.refocus(tiny.model, settings(**BOTH), mask), *prompts, sampler=sampler)
    assert held.isfinite().all() and (held - plain).abs().max() > 1e-4


def test_a_prompt_without_tokens_draws_as_before(pack, tiny, prompts, settings, mask) -> None:
    import nodes

    positive = nodes.CLIPTextEncode().encode(tiny.clip, TEXT)[0]
    patched = pack.comfy.refocus(tiny.model, settings(**BOTH), mask)
    plain = draw(tiny.model, positive, prompts[1])
    assert torch.equal(draw(patched, positive, prompts[1]), plain)


def test_long_and_short_prompts_in_one_batch(pack, tiny, prompts, settings, mask) -> None:
    """ComfyUI repeats the shorter context; both repetitions of a token are held."""
    import nodes

    patched = pack.comfy.refocus(tiny.model, settings(**BIAS), mask)
    long = nodes.CLIPTextEncode().encode(tiny.clip, "word " * 100)[0]
    together = draw(patched, prompts[0], long)
    # The same, with the passes apart: positive alone, then negative alone.
    with torch.inference_mode():
        apart = apart_cfg(patched, prompts[0], long)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


def apart_cfg(model, positive, negative):
    """The same drawing with one pass of the UNet for each conditioning."""
    import comfy.samplers

    model = model.clone()

    def one_by_one(args):
        return [
            comfy.samplers.calc_cond_batch(
                args["model"], [cond], args["input"], args["sigma"], args["model_options"]
            )[0]
            for cond in args["conds"]
        ]

    model.model_options["sampler_calc_cond_batch_function"] = one_by_one
    return draw(model, positive, negative)


def test_areas_see_their_part_of_the_region(pack, tiny, prompts, settings, mask) -> None:
    """A conditioning for the right half, where the mask is empty, is held away everywhere."""
    import nodes

    area = nodes.ConditioningSetArea()
    right = area.append(prompts[0], 32, 64, 32, 0, 1.0)[0]
    both = prompts[1] + right
    mask[..., 32:] = 0
    empty, full = mask * 0, mask.clone()
    full[..., 32:] = 1

    def drawn(region):
        return draw(pack.comfy.refocus(tiny.model, settings(**BOTH), region), both, prompts[1])

    plain = draw(tiny.model, both, prompts[1])
    assert torch.equal(drawn(mask), drawn(empty))
    assert (drawn(mask) - drawn(full)).abs().max() > 1e-4
    assert (drawn(mask) - plain).abs().max() > 1e-4


def test_images_of_a_batch_have_their_own_masks(pack, tiny, prompts, settings, mask) -> None:
    masks = torch.cat([mask, 1 - mask])
    patched = pack.comfy.refocus(tiny.model, settings(**BIAS), masks)
    swapped = pack.comfy.refocus(tiny.model, settings(**BIAS), masks.flip(0))
    first, second = draw(patched, *prompts, batch=2), draw(swapped, *prompts, batch=2)
    one = pack.comfy.refocus(tiny.model, settings(**BIAS), mask)
    both = draw(one, *prompts, batch=2)
    torch.testing.assert_close(first[0], both[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second[1], both[1], rtol=1e-3, atol=1e-3)
    assert (first[1] - both[1]).abs().max() > 1e-4


@pytest.mark.parametrize(("how", "at"), [(BIAS, 2), (GRADIENT, 1)], ids=["bias", "gradient"])
def test_cancel_leaves_the_model_clean(pack, tiny, prompts, settings, mask, how, at) -> None:
    import comfy.model_management as management

    plain, before = draw(tiny.model, *prompts), state(tiny.model)
    patched = pack.comfy.refocus(tiny.model, settings(**how), mask)
    unet, calls = tiny.model.model.diffusion_model, []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == at:
            raise management.InterruptProcessingException

    handle = unet.output_blocks[0][0].register_forward_hook(interrupt)
    with pytest.raises(management.InterruptProcessingException):
        draw(patched, *prompts)
    handle.remove()
    assert state(tiny.model) == before
    assert torch.equal(draw(tiny.model, *prompts), plain)
    assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled()


def test_inpainting_and_loras_go_together_with_it(pack, tiny, prompts, settings, mask) -> None:
    import nodes

    latent = nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    latent["noise_mask"] = mask[:, 0]
    weight = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    model = tiny.model.clone()
    assert model.add_patches({weight: ("diff", (0.1 * torch.ones(64, 32),))}, 1.0)
    patched = pack.comfy.refocus(model, settings(**BOTH), mask)
    held = draw(patched, *prompts, latent=latent)
    assert (held - draw(model, *prompts, latent=latent)).abs().max() > 1e-4


def test_little_memory_draws_the_same(pack, tiny, prompts, settings, mask, scarce) -> None:
    weight = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    model = tiny.model.clone()
    assert model.add_patches({weight: ("diff", (0.1 * torch.ones(64, 32),))}, 1.0)
    patched = pack.comfy.refocus(model, settings(**BOTH), mask)
    enough = draw(patched, *prompts)
    little = draw(scarce(patched), *prompts)
    layer = tiny.model.model.get_submodule(weight.removesuffix(".weight"))
    assert len(layer.weight_function) == 1, "the LoRA waits for its use"
    torch.testing.assert_close(little, enough, rtol=1e-3, atol=1e-3)
    assert (enough - draw(model, *prompts)).abs().max() > 1e-2


def test_controlnets_go_together_with_it(pack, tiny, prompts, settings, mask) -> None:
    """Their weights are inference tensors, so their output counts as a constant."""
    import comfy.controlnet
    import node_helpers

    class Hint(comfy.controlnet.ControlBase):
        weight = 0.1 * torch.ones(64, 4, 1, 1)

        def get_control(self, x, *_):
            hint = torch.nn.functional.conv2d(x / x.std(), self.weight.to(x))
            return {"input": [], "middle": [torch.nn.functional.avg_pool2d(hint, 2)], "output": []}

    assert Hint.weight.is_inference()
    positive = node_helpers.conditioning_set_values(prompts[0], {"control": Hint()})
    patched = pack.comfy.refocus(tiny.model, settings(**GRADIENT), mask)
    held, plain = (draw(model, positive, prompts[1]) for model in (patched, tiny.model))
    assert (held - plain).abs().max() > 1e-4
    assert (plain - draw(tiny.model, *prompts)).abs().max() > 1e-4


# -- both kinds of UNet -----------------------------------------------------------------------


def test_both_kinds_of_unet_agree(pack, make, tiny, settings, mask) -> None:
    """The bias, and the gradient's loss and slope, on the same weights in diffusers' UNet."""
    package, attention = pack("magicapture.refocusing"), pack("magicapture.attention")
    comfy_host = pack("nodes._comfy.attention").TappedComfy
    own = tiny.model.model.diffusion_model
    with torch.inference_mode(False):
        theirs = make.diffusers_twin(tiny.model).requires_grad_(False)
        z, context = torch.randn(1, 4, 8, 8), torch.randn(1, 9, 32)
        time = torch.tensor([500])
        rows = [(package.Focus("ada", "subject", (2, 3)), package.Focus("ink", "style", (6,)))]
        region = package.fit(mask, (8, 8))
        guidance = settings(**GRADIENT)
        found = []
        part = pack.comfy.Part(tiny.model, own, torch.float32)
        scope = pack("nodes._comfy.scope").gradients_while_sampling(part)
        with scope:
            for unet, host, run in (
                (theirs, attention.TappedTorch, lambda at: theirs(at, time, context).sample),
                (own, comfy_host, lambda at: own(at, time.float(), context=context)),
            ):
                network, sites = host.of(unet), attention.cross_attentions(unet)
                with torch.no_grad():
                    plain = run(z)
                    with network.tapped(package.holding(rows, region, 5.0), sites):
                        held = run(z)
                engine = package.Refocuser(network, guidance)
                at = z.clone().requires_grad_()
                loss = engine.loss(lambda run=run, at=at: run(at), rows, [region[0, 0]], (8, 8))
                slope = torch.autograd.grad(loss.sum(), at)[0]
                found.append(SimpleNamespace(plain=plain, held=held, loss=loss, slope=slope))
    assert (found[0].held - found[0].plain).abs().max() > 1e-3
    assert found[0].slope.abs().max() > 0
    for name in ("plain", "held", "loss", "slope"):
        a, b = (getattr(of, name) for of in found)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_regions_of_the_last_sampling_are_kept(pack, tiny, prompts, settings, mask) -> None:
    used = pack.comfy.UsedRegions()
    found = pack.comfy.refocus(tiny.model, settings(bias=4.0), used=used)
    assert used.steps == []
    for _ in range(2):  # a second sampling begins anew
        draw(found.clone(), *prompts)
        assert [share for share, _ in used.steps] == pytest.approx([0, 1 / 3, 2 / 3])
        assert used.steps[0][1] is None
        assert used.steps[1][1].shape == (8, 8)
    given = pack.comfy.UsedRegions()
    draw(pack.comfy.refocus(tiny.model, settings(bias=4.0), mask, given), *prompts)
    assert given.steps == []


def test_the_preview_node_shows_the_regions_of_the_sampling(pack, tiny, prompts, settings) -> None:
    sampling = pack("nodes.sampling")
    node = sampling.MagiCapturePreviewAttention
    held = dataclasses.asdict(settings(bias=4.0))
    del held["factors"]
    found, used = sampling.MagiCaptureRefocusAttention.execute(tiny.model, **held).args
    latent = {"samples": draw(found, *prompts)}
    for given, steps in ((used, 3), (None, 2)):  # of the sampling; of this look
        *_, told, regions = node.execute(
            found, prompts[0], latent, 2, 0, torch.rand(1, 64, 64, 3), regions=given
        ).args
        assert regions.shape == (1, 128, steps * 128, 3)
        assert "ada: " in told


def test_a_mask_that_holds_nothing_is_refused(pack, tiny, prompts, settings) -> None:
    """An unpainted mask is black; both nodes name themselves and the input."""
    nodes, error = pack("nodes.sampling"), pack("magicapture.errors").InputError
    held = dataclasses.asdict(settings())
    del held["factors"]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for mask, message in (
        (torch.zeros(1, 64, 64), "nothing: it is black"),
        (torch.ones(2, 8, 8), "white every"),
    ):
        with pytest.raises(error, match=f"Refocus Attention: The input 'mask' .*{message}"):
            nodes.MagiCaptureRefocusAttention.execute(tiny.model, mask=mask, **held)
        with pytest.raises(error, match=f"Preview Attention: The input 'mask' .*{message}"):
            nodes.MagiCapturePreviewAttention.execute(
                tiny.model, prompts[0], latent, 1, 0, mask=mask
            )


# -- looking ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_preview_shows_each_token_at_each_step_and_size(
    pack, tiny, prompts, settings, mask, given
) -> None:
    region = mask if given else None
    patched = pack.comfy.refocus(tiny.model, settings(**BOTH), mask)
    latent = {"samples": draw(tiny.model, *prompts)}
    before = state(tiny.model)
    seen = pack.comfy.look(patched, prompts[0], latent, [0.0, 0.5], region=region)
    assert state(tiny.model) == before
    kinds = {(s.token, s.share, s.factor, tuple(s.values.shape)) for s in seen}
    sizes = ((1, (8, 8)), (2, (4, 4)))
    assert kinds == {(t, x, f, hw) for t in ("ada", "ink") for x in (0.0, 0.5) for f, hw in sizes}
    plain = pack.comfy.look(tiny.model, prompts[0], latent, [0.0, 0.5], region=region)
    assert all(torch.equal(a.values, b.values) for a, b in zip(seen, plain, strict=True))
    assert all(0 <= s.leakage <= 1 for s in seen)
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match="Encode Prompt"):
        pack.comfy.look(tiny.model, prompts[1], latent, [0.0])
