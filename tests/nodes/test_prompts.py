"""Encode Prompt's extra words: the core's edit guidance out of CONDITIONING alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")

TEXT, EXTRA = "a photo of embedding:ada woman in the embedding:ink style", "with a hat"
WHOLE = f"{TEXT}, {EXTRA}"


@pytest.fixture
def concepts(pack, make):
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(1)
        for name, count in (("ada", 2), ("ink", 1)):
            vectors = torch.randn(count, 32, generator=generator)
            save_file({"emb_params": vectors}, make.embeddings / f"{name}.safetensors")
    concept = pack("magicapture.tokens").Concept
    return (concept("ada", "subject", "woman"), concept("ink", "style"))


@pytest.fixture
def encoded(pack, tiny, concepts):
    """What Encode Prompt makes of the text."""
    node = pack("nodes.sampling").MagiCaptureEncodePrompt
    adapter = type("Adapter", (), {"concepts": concepts})

    def encode(text=TEXT, inside="", outside="", **extra):
        return node.execute(tiny.clip, text, inside, outside, adapter, **extra)[0]

    return encode


def plain(tiny, text: str):
    import nodes

    return nodes.CLIPTextEncode().encode(tiny.clip, text)[0]


def sigma_at(model, timestep: int) -> Tensor:
    return model.get_model_object("model_sampling").sigma(torch.tensor(float(timestep)))


def noise_for(batch: int = 1) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def estimate(model, positive, negative, cfg: float, batch: int = 1) -> Tensor:
    """The clean latents (B,4,8,8) that ComfyUI's CFG estimates at timestep 400, from noise."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    noise = noise_for(batch)
    sigmas = torch.stack([sigma_at(model, 400), torch.tensor(0.0)])  # one step of Euler ends there
    euler = comfy.samplers.sampler_object("euler")
    found = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=1)
    return model.model.process_latent_in(found)


def draw(model, positive, negative, *, cfg=4.0, sampler="euler", batch=1, latent=None):
    import nodes

    latent = latent or nodes.EmptyLatentImage().generate(64, 64, batch)[0]
    run = nodes.KSampler().sample
    return run(model, 3, 3, cfg, sampler, "normal", positive, negative, latent)[0]["samples"]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def guided(model, tiny, strength: float, cfg: float, batch: int = 1, extra=None) -> Tensor:
    """e_0 + cfg (e - e_0) + strength cfg (e_extra - e), each of a pass of its own."""
    negative = plain(tiny, "blurred")
    none, prompt, whole = (
        estimate(model, conditioning, negative, 1.0, batch)
        for conditioning in (negative, plain(tiny, TEXT), extra or plain(tiny, WHOLE))
    )
    start = prompt if cfg == 1 else none
    return start + cfg * (prompt - start) + strength * cfg * (whole - prompt)


# -- the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0, 5.0])
def test_extra_words_are_guided_by_themselves(tiny, encoded, strength, cfg) -> None:
    positive = encoded(extra=EXTRA, extra_strength=strength)
    found = estimate(tiny.model, positive, plain(tiny, "blurred"), cfg, batch=2)
    close(found, guided(tiny.model, tiny, strength, cfg, batch=2))
    assert (found - guided(tiny.model, tiny, 0.0, cfg, batch=2)).abs().max() > 1e-3


@pytest.mark.parametrize("given", [None, 3.0])
def test_it_is_the_cores_edit_guidance(pack, make, tiny, encoded, given) -> None:
    """Untold, both take the same strength."""
    sampling, tokens = pack("magicapture.sampling"), pack("magicapture.tokens")
    with torch.inference_mode(False):
        files = {
            name: load_file(make.embeddings / f"{name}.safetensors") for name in ("ada", "ink")
        }
        vectors = tokens.TokenVectors(
            {name: {"clip_l": f["emb_params"]} for name, f in files.items()}
        )
    settings = sampling.SamplingSettings(
        guidance=4.0, negative="blurred", edit=EXTRA, edit_strength=given
    )
    text = TEXT.replace("embedding:ada", "<ada>").replace("embedding:ink", "<ink>")
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    sigma = sigma_at(tiny.model, 400)
    noisy = noise_for() * sigma
    with torch.inference_mode(False), backbone.training(None), torch.no_grad():
        rows = sampling.guided_conditioning(backbone, [text], vectors, settings)
        scaled = noisy.clone() / float(sigma**2 + 1) ** 0.5
        error = sampling.guided_prediction(
            backbone, scaled, torch.tensor(400), rows, 4.0, edit_strength=given
        )
    strength = {} if given is None else {"extra_strength": given / 4}
    positive = encoded(extra=EXTRA, **strength)
    close(estimate(tiny.model, positive, plain(tiny, "blurred"), 4.0), noisy - sigma * error)


def test_without_strength_or_words_it_is_the_text_bit_by_bit(tiny, encoded) -> None:
    def same(found, expected) -> None:
        assert len(found) == len(expected) == 1
        assert torch.equal(found[0][0], expected[0][0])
        assert "strength" not in found[0][1]

    for none in ({"extra": EXTRA, "extra_strength": 0.0}, {"extra": " , "}, {"extra": ""}, {}):
        same(encoded(**none), plain(tiny, TEXT))
    same(encoded(extra=EXTRA, extra_strength=1.0), plain(tiny, WHOLE))


def test_one_pass_of_the_unet_takes_half_as_much_again(tiny, encoded) -> None:
    rows: list[int] = []
    unet = tiny.model.model.diffusion_model
    hook = unet.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    try:
        for extra in ("", EXTRA):
            estimate(tiny.model, encoded(extra=extra), plain(tiny, "blurred"), 4.0, batch=2)
        estimate(tiny.model, encoded(extra=EXTRA), plain(tiny, "blurred"), 1.0, batch=2)
    finally:
        hook.remove()
    assert rows == [4, 6, 4]


def test_extra_words_may_go_beyond_77_tokens(tiny, encoded) -> None:
    more = "with a very large hat " * 15
    positive = encoded(extra=more)
    assert [part[0].shape[1] for part in positive] == [77, 154]
    whole = plain(tiny, f"{TEXT}, {more}")
    found = estimate(tiny.model, positive, plain(tiny, "blurred"), 4.0)
    close(found, guided(tiny.model, tiny, 2.0, 4.0, extra=whole))


# -- together with what users have ------------------------------------------------------------


@pytest.mark.parametrize("style", ["euler", "euler_ancestral"])
def test_stock_dual_guidance_draws_the_same(tiny, encoded, style) -> None:
    """DualCFGGuider with the text with the words, the text, and strength times CFG."""
    from comfy_extras import nodes_custom_sampler as custom

    import nodes

    def run(node, *args):
        made = getattr(node, "execute", None)
        return (made or getattr(node(), node.FUNCTION))(*args)[0]

    latent = nodes.EmptyLatentImage().generate(64, 64, 2)[0]
    negative = plain(tiny, "blurred")
    conditionings = (plain(tiny, WHOLE), plain(tiny, TEXT), negative)
    guider = run(custom.DualCFGGuider, tiny.model, *conditionings, 8.0, 4.0, "regular")
    found = run(
        custom.SamplerCustomAdvanced,
        run(custom.RandomNoise, 3),
        guider,
        run(custom.KSamplerSelect, style),
        run(custom.BasicScheduler, tiny.model, "normal", 3, 1.0),
        latent,
    )["samples"]
    drawn = draw(tiny.model, encoded(extra=EXTRA), negative, sampler=style, latent=latent)
    torch.testing.assert_close(drawn, found, rtol=1e-3, atol=1e-3)
    assert (
        drawn - draw(tiny.model, encoded(), negative, sampler=style, latent=latent)
    ).abs().max() > 0.01


def test_a_mask_divides_the_picture_as_ever(tiny, encoded) -> None:
    import nodes

    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    negative, other = plain(tiny, "blurred"), plain(tiny, "a dog")
    parts = [
        nodes.ConditioningSetMask().append(conditioning, mask, "default", 0.8)[0]
        for conditioning, mask in ((encoded(extra=EXTRA), left), (other, 1 - left))
    ]
    both = nodes.ConditioningCombine().combine(*parts)[0]
    found = estimate(tiny.model, both, negative, 4.0)
    close(found[..., :4], guided(tiny.model, tiny, 2.0, 4.0)[..., :4])
    close(found[..., 4:], estimate(tiny.model, other, negative, 4.0)[..., 4:])


@pytest.mark.parametrize("given", [True, False])
def test_refocusing_holds_the_tokens_of_both_parts(pack, tiny, encoded, given) -> None:
    settings = pack("magicapture.refocusing").RefocusGuidance
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:40] = 1
    bias = settings(bias=5.0, factors=(1, 2))
    held = pack.comfy.refocus(tiny.model, bias, mask if given else None)
    negative = plain(tiny, "blurred")
    if given:  # each row is held for itself
        none, prompt, whole = (
            estimate(held, conditioning, negative, 1.0)
            for conditioning in (negative, encoded(), encoded(WHOLE))
        )
        assert (whole - estimate(tiny.model, encoded(WHOLE), negative, 1.0)).abs().max() > 1e-3
        expected = none + 4.0 * (prompt - none) + 8.0 * (whole - prompt)
        close(estimate(held, encoded(extra=EXTRA), negative, 4.0), expected)
    both = pack.comfy.refocus(
        tiny.model, replace(bias, gradient=0.05, end=0.7, threshold=0.0), mask if given else None
    )
    drawings = [draw(m, encoded(extra=EXTRA), negative, batch=2) for m in (tiny.model, held, both)]
    for one, other in pairwise(drawings):
        assert other.isfinite().all() and (one - other).abs().max() > 1e-4
    assert torch.equal(draw(tiny.model, encoded(extra=EXTRA), negative, batch=2), drawings[0])


def test_a_look_shows_the_tokens_once_with_the_extra_words(pack, tiny, encoded) -> None:
    latent = {"samples": noise_for()}
    positive = encoded(inside="hat", extra=EXTRA)
    seen = pack.comfy.look(tiny.model, positive, latent, [0.5])
    assert {one.token for one in seen} == {"ada", "ink", "hat"}
    whole = pack.comfy.look(tiny.model, encoded(WHOLE, inside="hat"), latent, [0.5])
    for one, other in zip(seen, whole, strict=True):
        close(one.values, other.values)


# -- mistakes ---------------------------------------------------------------------------------


def test_words_to_hold_are_looked_for_in_text_and_extra(pack, encoded) -> None:
    tokens, error = pack("nodes._comfy.marks").TOKENS, pack("magicapture.errors").InputError
    text, whole = (part[1][tokens] for part in encoded(inside="hat, photo", extra=EXTRA))
    assert [focus.name for focus in text] == ["ada", "ink", "photo"]
    assert [focus.name for focus in whole] == ["ada", "ink", "hat", "photo"]
    with pytest.raises(error, match="no 'cap'"):
        encoded(inside="cap", extra=EXTRA)
    with pytest.raises(error, match="no embedding:ada or embedding:ink"):
        encoded("a photo of a woman", extra=EXTRA)
