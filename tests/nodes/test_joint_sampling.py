"""Refocus and Preview Attention on transformers, whose words and picture attend to both."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of a man with a hat"
WIDE, HIGH = 96, 64  # pixels: 8 x 12 latent cells, of which two a side are one place
CELLS = (HIGH // 8, WIDE // 8)
PLACES = (HIGH // 16, WIDE // 16)
BIAS = {"bias": 30.0}
GRADIENT = {"bias": 0.0, "gradient": 0.05, "end": 0.7, "threshold": 0.0}
BOTH = {**GRADIENT, "bias": 5.0, "iterations": 2}


@pytest.fixture
def mask() -> Tensor:
    """One region, in whole places: rows 1 and 2, columns 1 to 3."""
    mask = torch.zeros(1, 1, HIGH, WIDE)
    mask[..., 16:48, 16:64] = 1
    return mask


@pytest.fixture
def model(tiny_flux):
    return tiny_flux.model


@pytest.fixture
def prompts(pack, tiny_flux) -> tuple[Any, Any]:
    """Of a token to hold inside; the negative has none."""
    return encoded(pack, tiny_flux, "man")


def encoded(pack, tiny, inside: str, outside: str = "") -> tuple[Any, Any]:
    import nodes

    positive = pack.comfy.encode_marked(tiny.clip, TEXT, (), inside, outside)
    return positive, nodes.CLIPTextEncode().encode(tiny.clip, "blurred")[0]


@pytest.fixture
def refocused(pack):
    settings = pack("magicapture.refocusing").RefocusGuidance

    def refocus(model, region=None, used=None, **how):
        return pack.comfy.refocus(model, settings(**how), region, used, "7")

    return refocus


@pytest.fixture
def said(pack, monkeypatch) -> list[str]:
    shown: list[str] = []
    monkeypatch.setattr(pack("nodes._comfy.host"), "show_text", lambda text, _: shown.append(text))
    return shown


def draw(model, prompts, batch=1, cfg=4.0, sampler="euler", size=(WIDE, HIGH), steps=3) -> Tensor:
    import nodes

    latent = nodes.EmptyLatentImage().generate(*size, batch)[0]
    given = (model, 3, steps, cfg, sampler, "simple", *prompts, latent)
    return nodes.KSampler().sample(*given)[0]["samples"]


def state(model) -> dict[str, int]:
    """What a network's tensors are, and what hangs on its modules."""
    network = model.model.diffusion_model
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
    own = {name: id(p) for name, p in network.named_parameters()}
    return {**own, "hooks": hooks, "own": sum(len(vars(m)) for m in network.modules())}


# -- the bias -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_without_strength_or_tokens_it_is_bit_equal(refocused, prompts, model, mask, given):
    region = mask if given else None
    plain = draw(model, prompts, batch=2)
    assert torch.equal(draw(refocused(model, region, bias=0.0), prompts, batch=2), plain)
    unmarked = ([[prompts[0][0][0], {"pooled_output": prompts[0][0][1]["pooled_output"]}]],)
    unmarked = (*unmarked, prompts[1])
    assert torch.equal(draw(refocused(model, region, **BOTH), unmarked, batch=2), plain)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("how", [BIAS, GRADIENT, BOTH], ids=["bias", "gradient", "both"])
def test_the_picture_changes_and_the_model_does_not(
    pack, refocused, tiny_flux, model, mask, how, given, said
):
    prompts = encoded(pack, tiny_flux, "man, hat", "photo")
    plain, before = draw(model, prompts), state(model)
    used = pack.comfy.UsedRegions()
    patched = refocused(model, mask if given else None, used, **how)
    held = draw(patched, prompts)
    assert held.isfinite().all() and (held - plain).abs().max() > 1e-4
    assert torch.equal(draw(patched, prompts), held)
    assert state(model) == before and torch.equal(draw(model, prompts), plain)
    assert said == []
    if not given:
        assert len(used.steps) == 3 and used.steps[0][1] is None
        assert used.steps[1][1].shape == CELLS


class Watch:
    """Records every attention as its kernel gets it, with what its rows are: 0 positive."""

    def __init__(self, pack, model) -> None:
        network = model.model.diffusion_model
        self.sites = list(pack("magicapture.attention").cross_attentions(network))
        self.tapped = pack("nodes._comfy.attention").TappedComfy.of(network)
        self.passes: list[SimpleNamespace] = []

    def on(self, model):
        """A clone of MODEL whose passes are told apart."""
        from comfy.patcher_extension import WrappersMP

        def spy(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            options = next(a for a in args if isinstance(a, dict))
            self.passes.append(SimpleNamespace(rows=options["cond_or_uncond"], seen={}))
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", spy)
        return model

    def __call__(self, attention: Any, run: Any) -> Tensor:
        self.passes[-1].seen[attention.site] = attention
        return run(attention)

    def draw(self, model, prompts, **more: Any) -> Tensor:
        with self.tapped.tapped(self, self.sites):  # set first: gets what is held
            return draw(self.on(model), prompts, **more)


def softmax(attention: Any) -> Tensor:
    """What each place gives to each column, mean of the heads: (B,h,w,L), from q and k alone."""
    words = attention.key.shape[2] - PLACES[0] * PLACES[1]
    logits = attention.query @ attention.key.mT / attention.query.shape[-1] ** 0.5
    return logits.softmax(-1).mean(1)[:, words:, :words].unflatten(1, PLACES)


@pytest.mark.parametrize("style", ["", "photo"])
def test_the_token_is_held_in_every_site_and_the_rest_is_free(
    pack, refocused, tiny_flux, model, mask, style
):
    prompts = encoded(pack, tiny_flux, "man", style)
    tokens = prompts[0][0][1][pack("nodes._comfy.marks").TOKENS]
    inside = torch.nn.functional.avg_pool2d(mask, 16)[0, 0] == 1
    free, held = Watch(pack, model), Watch(pack, model)
    free.draw(model, prompts, batch=2)
    held.draw(refocused(model, mask, **BIAS), prompts, batch=2)
    assert len(held.passes) == len(free.passes) == 3 and len(tokens) == 1 + bool(style)
    for one, other in zip(held.passes, free.passes, strict=True):
        assert list(one.seen) == held.sites and sorted(one.rows) == [0, 1]
        kinds = torch.tensor(one.rows).repeat_interleave(2)
        for site, attention in one.seen.items():
            shares, plain = softmax(attention), softmax(other.seen[site])
            assert shares.shape == (4, *PLACES, 77)
            for token in tokens:
                own = shares[..., list(token.columns)].sum(-1)
                there = inside if token.role == "subject" else ~inside
                assert own[kinds == 0][:, ~there].max() < 1e-9
                assert own[kinds == 0][:, there].min() > 1e-4 < own[kinds == 1].min()
            if one is held.passes[0] and site == held.sites[0]:  # all before it is the same
                torch.testing.assert_close(shares[kinds == 1], plain[kinds == 1])
                if not style:
                    torch.testing.assert_close(shares[:, inside], plain[:, inside])


def test_a_batch_is_its_pictures_and_conditionings_apart(refocused, prompts, model, mask):
    """Each with its own mask, and positive and negative in one pass or in two."""
    masks = torch.cat([mask, mask.roll(32, -1)])
    both = draw(refocused(model, masks, **BIAS), prompts, batch=2)
    for image, region in enumerate(masks):
        own = draw(refocused(model, region[None], **BIAS), prompts, batch=2)[image]
        torch.testing.assert_close(both[image], own, rtol=1e-3, atol=1e-3)
    assert (both[1] - draw(refocused(model, mask, **BIAS), prompts, batch=2)[1]).abs().max() > 1e-4
    # The same, with positive and negative in passes of their own.
    alone = draw(apart(refocused(model, masks, **BIAS)), prompts, batch=2)
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-3)


def apart(model):
    """A clone of MODEL that draws by one pass for each conditioning."""
    import comfy.samplers

    model = model.clone()

    def one_by_one(args):
        given = args["input"], args["sigma"], args["model_options"]
        calc = comfy.samplers.calc_cond_batch
        return [calc(args["model"], [cond], *given)[0] for cond in args["conds"]]

    model.model_options["sampler_calc_cond_batch_function"] = one_by_one
    return model


def test_pictures_that_are_no_whole_patches(refocused, prompts, model, mask):
    size = (WIDE - 8, HIGH - 8)  # 7 x 11 latent cells
    plain = draw(model, prompts, size=size)
    for how in (BIAS, GRADIENT):
        held = draw(refocused(model, mask, **how), prompts, size=size)
        assert held.shape == (1, 4, 7, 11) and (held - plain).abs().max() > 1e-4


def test_the_columns_are_those_of_the_encoder_that_gives_the_context(pack, comfyui):
    """Flux's are T5's: it has no start, and cuts words in its own way."""
    from comfy.text_encoders.flux import FluxTokenizer

    tokenizer = FluxTokenizer()
    clip = SimpleNamespace(tokenize=tokenizer.tokenize_with_weights, tokenizer=tokenizer)
    marks, text = pack("nodes._comfy.marks"), "a photo of a platypus with a hat"
    line = marks._line(clip.tokenize(text))
    pieces = tokenizer.t5xxl.tokenizer.convert_ids_to_tokens(line)
    found = {word: marks._word(clip, line, word, "subject").columns for word in ("platypus", "hat")}
    for word, columns in found.items():
        assert "".join(pieces[column] for column in columns) == f"\u2581{word}"
    assert len(found["platypus"]) > 1 and len(line) == 256


# -- the gradient ---------------------------------------------------------------------------------


@pytest.fixture
def slopes(pack, monkeypatch) -> list[SimpleNamespace]:
    """The gradient's loss and its slope at each move, and whether differences agree with it."""
    refocusing, found = pack("nodes._comfy.refocusing"), []
    real = refocusing.descend

    def descend(latents: Tensor, loss_of: Any, **given: Any) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            at = latents.detach().clone().requires_grad_()
            loss = loss_of(at)
            (slope,) = torch.autograd.grad(loss.sum(), at)
        direction = slope / slope.norm()
        step = 2e-4 * latents.norm()
        moved = real(latents, loss_of, **given)
        with torch.inference_mode(False), torch.no_grad():
            at = latents.detach().clone()
            up, down = (loss_of(at + sign * step * direction).sum() for sign in (1, -1))
            after = loss_of(moved.clone())
        difference = (up - down) / (2 * step)
        found.append(
            SimpleNamespace(
                loss=loss.detach(), after=after, slope=slope.norm(), difference=difference
            )
        )
        return moved

    monkeypatch.setattr(refocusing, "descend", descend)
    return found


@pytest.mark.parametrize("save_memory", [False, True], ids=["plain", "checkpointed"])
def test_the_gradient_is_that_of_central_differences(
    pack, refocused, tiny_flux, model, mask, slopes, save_memory
):
    """Under a region that is given: one that is found has jumps."""
    prompts = encoded(pack, tiny_flux, "man", "photo")
    draw(refocused(model, mask, save_memory=save_memory, **GRADIENT), prompts, batch=2, steps=4)
    assert len(slopes) == 3
    for one in slopes:
        assert one.loss.shape == (2,) and (one.loss > 0).all() and one.slope > 1e-5
        torch.testing.assert_close(one.difference, one.slope, rtol=2e-2, atol=0)


def test_the_gradient_brings_the_loss_down(pack, refocused, prompts, model, mask, slopes):
    how = {**GRADIENT, "iterations": 4, "gradient": 0.02}
    draw(refocused(model, mask, **how), prompts, batch=2)
    assert slopes and all((one.after < one.loss).all() for one in slopes)


@pytest.mark.parametrize("save_memory", [False, True], ids=["plain", "checkpointed"])
def test_the_gradient_beside_a_control_net(refocused, prompts, model, mask, slopes, save_memory):
    import comfy.controlnet
    import node_helpers

    class Hint(comfy.controlnet.ControlBase):
        weight = torch.linspace(-1, 1, 32).view(32, 1, 1, 1).repeat(1, 4, 2, 2)

        def get_control(self, x, *_):
            hint = torch.nn.functional.conv2d(x / x.std(), self.weight.to(x), stride=2)
            hint = hint.flatten(2).mT
            return {"input": [hint, hint], "output": [None, hint]}

    positive = node_helpers.conditioning_set_values(prompts[0], {"control": Hint()})
    plain = draw(model, (positive, prompts[1]))
    patched = refocused(model, mask, save_memory=save_memory, **GRADIENT)
    held = draw(patched, (positive, prompts[1]))
    assert (held - plain).abs().max() > 1e-4
    assert (plain - draw(model, prompts)).abs().max() > 1e-4
    assert slopes[0].slope > 1e-5
    # The hint counts as a constant, so that differences see more than the gradient.
    assert slopes[0].difference > 0


def test_little_memory_draws_the_same(refocused, prompts, model, mask, scarce):
    weight = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    model = model.clone()
    assert model.add_patches({weight: ("diff", (0.1 * torch.ones(96, 32),))}, 1.0)
    patched = refocused(model, mask, **BOTH)
    enough = draw(patched, prompts)
    torch.testing.assert_close(draw(scarce(patched), prompts), enough, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("made_in_inference", [False, True], ids=["own", "inference"])
def test_the_gradient_beside_patches_of_a_transformer(
    refocused, prompts, model, mask, slopes, made_in_inference
):
    """Which get their tensors in a dict, and change them in place."""
    called = []
    with torch.inference_mode(made_in_inference):
        weight = torch.full((1,), 0.9)

    def post_input(given):
        called.append("post_input")
        given["img"] *= weight
        return given

    def attention(q, k, v, pe, attn_mask, extra_options):
        called.append("attention")
        q *= weight
        return {"q": q * weight, "k": k}

    patched = model.clone()
    patched.set_model_patch(post_input, "post_input")
    patched.set_model_attn1_patch(attention)
    plain = draw(patched, prompts)
    assert (plain - draw(model, prompts)).abs().max() > 1e-4 and "post_input" in called
    held = draw(refocused(patched, mask, **GRADIENT), prompts)
    assert held.isfinite().all() and (held - plain).abs().max() > 1e-4
    if not made_in_inference:
        torch.testing.assert_close(slopes[0].difference, slopes[0].slope, rtol=2e-2, atol=0)


# -- left as it was -------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "at"), [(BIAS, 2), (GRADIENT, 1)], ids=["bias", "gradient"])
def test_cancel_leaves_the_model_clean(refocused, prompts, model, mask, how, at):
    import comfy.model_management as management

    plain, before, calls = draw(model, prompts), state(model), []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise management.InterruptProcessingException

    network = model.model.diffusion_model
    handle = network.double_blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(management.InterruptProcessingException):
        draw(refocused(model, mask, **how), prompts)
    handle.remove()
    assert state(model) == before and torch.equal(draw(model, prompts), plain)
    assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled()


# -- looking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_the_preview_shows_the_softmax_of_queries_and_keys(
    pack, refocused, tiny_flux, model, mask, given
):
    """Those that the kernel itself is called with, at each of two steps."""
    prompts = encoded(pack, tiny_flux, "man, hat", "photo")
    tokens = {f.name: f for f in prompts[0][0][1][pack("nodes._comfy.marks").TOKENS]}
    latent = {"samples": draw(model, prompts, batch=2)}
    calls: list[SimpleNamespace] = []

    def spy(kernel, query, key, value, heads, *args, **kwargs):
        assert kwargs["skip_reshape"]
        calls.append(SimpleNamespace(query=query, key=key))
        return kernel(query, key, value, heads, *args, **kwargs)

    watched = refocused(model, mask, **BOTH).clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = spy
    before = state(model)
    seen = pack.comfy.look(watched, prompts[0], latent, [0.0, 0.5], region=mask if given else None)
    assert state(model) == before and len(calls) == 2 * 4
    assert [(s.share, s.token) for s in seen] == [(x, t) for x in (0.0, 0.5) for t in tokens]
    inside = torch.nn.functional.avg_pool2d(mask, 16)[0, 0]
    for i, shown in enumerate(seen):
        token, first = tokens[shown.token], 4 * (i // len(tokens))
        double = [softmax(call)[0, ..., list(token.columns)] for call in calls[first : first + 2]]
        maps = torch.stack(double).sum(-1).mean(0)
        assert shown.factor == 2
        torch.testing.assert_close(shown.values, maps)
        if given:
            outside = 1 - inside if token.role == "subject" else inside
            leakage = float((maps * outside).sum() / maps.sum())
            assert shown.leakage == pytest.approx(leakage, rel=1e-4)
    assert given or any(s.region is not None for s in seen)
    plain = pack.comfy.look(model, prompts[0], latent, [0.0, 0.5], region=mask if given else None)
    assert all(torch.equal(a.values, b.values) for a, b in zip(seen, plain, strict=True))


def test_both_nodes_on_the_paperdoll_transformer(pack, paperdoll_weights, tmp_path, mask):
    """As loaded, through both nodes and the stock sampler."""
    import shutil

    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(4)
        shutil.copytree(paperdoll_weights, tmp_path / "weights")
        network = pack("magicapture.paperdoll.networks").transformer()
        network.half().save_pretrained(tmp_path / "weights" / "transformer")
    load = pack("nodes._comfy.paperdoll").load_paperdoll
    model, clip, _ = load(tmp_path / "weights", "transformer")
    prompts = encoded(pack, SimpleNamespace(clip=clip), "man")
    sampling = pack("nodes.sampling")
    held = dataclasses.asdict(pack("magicapture.refocusing").RefocusGuidance(**BOTH))
    del held["factors"]
    refocus = sampling.MagiCaptureRefocusAttention.execute
    patched = refocus(model, mask=mask[:, 0], **held).args[0]
    latent = {"samples": torch.zeros(1, 8, *CELLS)}

    def drawn(model):
        import nodes

        given = (model, 3, 3, 4.0, "euler", "simple", *prompts, latent)
        return nodes.KSampler().sample(*given)[0]["samples"]

    plain = drawn(model)
    assert (drawn(patched) - plain).abs().max() > 1e-4
    assert torch.equal(drawn(model), plain)
    maps, _, told, _ = sampling.MagiCapturePreviewAttention.execute(
        model, prompts[0], {"samples": plain}, 2, 0, mask=mask[:, 0]
    ).args
    assert "man: " in told and maps.std() > 0


@pytest.mark.parametrize("first", ["compiled", "ours"])
def test_a_compiled_transformer_is_held_as_it_is_written(refocused, prompts, model, mask, first):
    from comfy_api.torch_helpers.torch_compile import set_torch_compile_wrapper

    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return model

    torch.compiler.reset()
    expected = draw(refocused(model, mask, **BIAS), prompts)
    before = compiled(model)
    draw(before, prompts)  # compiled without our hooks
    if first == "compiled":
        ours = refocused(before, mask, **BIAS)
    else:
        ours = compiled(refocused(model, mask, **BIAS))
    torch.testing.assert_close(draw(ours, prompts), expected, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


# -- what cannot work is said ---------------------------------------------------------------------


def test_pictures_beside_the_one_drawn_are_refused_by_name(pack, refocused, prompts, model, mask):
    import node_helpers

    reference = {"reference_latents": [torch.randn(1, 4, 8, 8)]}
    positive = node_helpers.conditioning_set_values(prompts[0], reference)
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match=r"^Refocus Attention: another node \(ReferenceLatent, for one"):
        draw(refocused(model, mask, **BIAS), (positive, prompts[1]))
    with pytest.raises(error, match="No attention to the prompt can be seen: another node"):
        pack.comfy.look(model, positive, {"samples": torch.randn(1, 4, *CELLS)}, [0.5])
    assert state(model)["hooks"] == 0


def test_a_block_that_another_node_replaces_is_told(refocused, prompts, model, mask, said):
    def leave(args, _):
        return {"img": args["img"], "txt": args["txt"]}

    def through(args, more):
        return more["original_block"](args)

    for replaced, way in ((0, leave), (1, through)):
        patched = model.clone()
        patched.set_model_patch_replace(way, "dit", "double_block", replaced)
        said.clear()
        held = draw(refocused(patched, mask, **BIAS), prompts)
        assert (held - draw(patched, prompts)).abs().max() > 1e-4
        assert len(said) == 1 and "replaces layers that attend to the prompt" in said[0]


def test_networks_that_nobody_knows_are_refused(pack, refocused, make, prompts, model, mask):
    """A Flux that takes a picture beside the latents, as for inpainting."""
    families = pack("magicapture.families").FAMILIES
    other = make.flux(in_channels=8)
    error = pack("magicapture.errors").UnsupportedModelError
    known = ", ".join(family.title for family in families.values())
    sentence = rf"The input 'model' holds TinyFlux \(Flux\), .* one of these: {known}"
    with pytest.raises(error, match=sentence):
        refocused(other, mask, **BIAS)
    with pytest.raises(error, match=sentence):
        pack.comfy.look(other, prompts[0], {"samples": torch.randn(1, 4, *CELLS)}, [0.5])
    for call in (lambda: refocused(None), lambda: pack.comfy.look(None, prompts[0], {}, [0.5])):
        with pytest.raises(pack("magicapture.errors").InputError, match="no model at the input"):
            call()


def test_references_refuse_joint_attention_in_words(pack, tiny_flux):
    magicface = pack("nodes._comfy.magicface")
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match=r"input 'model' holds TinyFlux \(Flux.*references work with"):
        magicface.prepare(tiny_flux.model, tiny_flux.clip, tiny_flux.vae, (), "", 64)
