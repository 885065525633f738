"""Samplers against loops written by hand, seeds, and guidance."""

from dataclasses import replace

import pytest
import torch

from magicapture.adapters import Adapter
from magicapture.errors import InputError, NumericalError
from magicapture.lora import LoraWeights
from magicapture.sampling import (
    SamplingSettings,
    adapted,
    denoise,
    guided_conditioning,
    guided_prediction,
    make_scheduler,
    sample,
    sample_latents,
    seeded,
    share_of,
)
from magicapture.schedule import DiscreteLevels, FlowLevels, Schedule
from magicapture.tokens import Prompt, TokenVectors

SMALL = {"steps": 4, "width": 64, "height": 64}
SAMPLERS = ["euler_a", "ddim", "dpmpp_2m"]


@pytest.fixture
def vectors():
    return TokenVectors({"ada": {"clip_l": torch.randn(2, 32)}})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_is_the_papers_loop(make_backbone, vectors, kind):
    """z' = sqrt(abar') x0 + sqrt(1 - abar') epsilon (Song et al., eta = 0)."""
    backbone = make_backbone(kind)
    settings = SamplingSettings("ddim", guidance=3.0, negative="blurred", **SMALL)
    conditioning = guided_conditioning(backbone, ["a <ada> cat"], vectors, settings)
    noise = torch.randn(1, 4, 8, 8)

    z, abar = noise, backbone.schedule.levels.alphas_cumprod
    with torch.no_grad():
        for t, following in ((999, 749), (749, 500), (500, 250), (250, None)):
            now = torch.tensor([t])
            both = backbone.predict(torch.cat([z, z]), now.repeat(2), conditioning)
            output = both[:1] + 3.0 * (both[1:] - both[:1])
            x0 = backbone.schedule.to_x0(output, z, now)
            epsilon = (z - abar[t].sqrt() * x0) / (1 - abar[t]).sqrt()
            after = torch.tensor(1.0) if following is None else abar[following]
            z = after.sqrt() * x0 + (1 - after).sqrt() * epsilon

    found = denoise(backbone, noise, conditioning, settings)
    torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-4)


def test_euler_ancestral_is_its_loop(backbone, vectors):
    """In x = z / sqrt(abar): a step to sigma_down, then noise up to the next sigma (Karras)."""
    settings = SamplingSettings("euler_a", guidance=1.0, **SMALL)
    conditioning = guided_conditioning(backbone, ["a <ada> cat"], vectors, settings)
    noise = torch.randn(1, 4, 8, 8)
    abar = backbone.schedule.levels.alphas_cumprod
    times = [999, 666, 333, 0]
    sigmas = [float(((1 - abar[t]) / abar[t]).sqrt()) for t in times] + [0.0]
    generator = torch.Generator().manual_seed(8)

    x = noise * sigmas[0]
    with torch.no_grad():
        for t, sigma, following in zip(times, sigmas, sigmas[1:], strict=False):
            scaled = x / (1 + sigma**2) ** 0.5
            epsilon = backbone.predict(scaled, torch.tensor([t]), conditioning)
            up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
            down = (following**2 - up**2) ** 0.5
            x = x + epsilon * (down - sigma)
            x = x + up * torch.randn(x.shape, generator=generator)

    generators = [torch.Generator().manual_seed(8)]
    found = denoise(backbone, noise, conditioning, settings, generators=generators)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_model_gives_its_one_picture(make_backbone, sampler, kind):
    """Were there one picture in the world, every sampler would arrive at it."""
    backbone = make_backbone(kind)
    picture = torch.randn(1, 4, 8, 8)

    def predict(noisy, timesteps, conditioning):
        signal, noise = backbone.schedule.mix(timesteps, noisy)
        epsilon = (noisy - signal * picture) / noise
        return backbone.schedule.target(picture, epsilon, timesteps)

    backbone.predict = predict
    settings = SamplingSettings(sampler, steps=25, guidance=1.0, width=64, height=64)
    conditioning = guided_conditioning(backbone, ["a"], None, settings)
    found = denoise(
        backbone, torch.randn(1, 4, 8, 8), conditioning, settings, generators=seeded(0, 1)
    )
    torch.testing.assert_close(found, picture, atol=0.05, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_flow_gives_its_one_picture_and_is_told_sigmas(backbone, sampler, shift):
    backbone.schedule = Schedule(FlowLevels(shift=shift), "flow")
    picture, told = torch.randn(1, 4, 8, 8), []

    def predict(noisy, timesteps, conditioning):
        told.append(float(timesteps[0]))
        return (noisy - picture) / timesteps.reshape(-1, 1, 1, 1)

    backbone.predict = predict
    settings = SamplingSettings(sampler, steps=25, guidance=1.0, width=64, height=64)
    conditioning = guided_conditioning(backbone, ["a"], None, settings)
    starts = torch.randn(2, 1, 4, 8, 8)
    for noise in starts:
        found = denoise(backbone, noise, conditioning, settings, generators=seeded(0, 1))
        torch.testing.assert_close(found, picture, atol=0.05, rtol=0)
    levels = told[:25]
    assert levels == sorted(levels, reverse=True) and 0.99 < levels[0] < 1
    even = [1 - i * 0.999 / 25 - 0.001 for i in range(25)]
    expected = [shift * u / (1 + (shift - 1) * u) for u in even]
    assert levels == pytest.approx(expected, abs=0.05)


def test_ddim_of_a_flow_is_eulers_loop(backbone):
    backbone.schedule = Schedule(FlowLevels(), "flow")
    torch.manual_seed(0)
    bend = torch.randn(4, 4)

    def predict(noisy, timesteps, conditioning):
        turned = torch.einsum("ij,bjhw->bihw", bend, noisy).tanh()
        return noisy * timesteps.reshape(-1, 1, 1, 1) + turned

    backbone.predict = predict
    settings = SamplingSettings("ddim", steps=7, guidance=1.0, width=64, height=64)
    scheduler = make_scheduler(backbone.schedule, "ddim")
    scheduler.set_timesteps(7)
    z = noise = torch.randn(1, 4, 8, 8)
    for now, following in zip(scheduler.sigmas, scheduler.sigmas[1:], strict=False):
        z = z + (following - now) * predict(z, now.expand(1), None)
    conditioning = guided_conditioning(backbone, ["a"], None, settings)
    found = denoise(backbone, noise, conditioning, settings)
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_can_be_drawn_from(backbone, sampler):
    abar = backbone.schedule.levels.alphas_cumprod
    levels = DiscreteLevels(abar - abar[-1])
    backbone.schedule = Schedule(levels, "v_prediction")
    settings = SamplingSettings(sampler, guidance=1.0, **SMALL)
    assert sample(backbone, "a", settings=settings).isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_schedulers_take_the_backbones_schedule(tiny, sampler):
    schedule = Schedule(
        DiscreteLevels(tiny.schedule().levels.alphas_cumprod[:600] ** 1.3), "v_prediction"
    )
    scheduler = make_scheduler(schedule, sampler)
    torch.testing.assert_close(
        scheduler.alphas_cumprod, schedule.levels.alphas_cumprod, rtol=1e-4, atol=1e-6
    )
    assert scheduler.config.prediction_type == "v_prediction"
    for steps in (2, 7, 61):
        scheduler.set_timesteps(steps)
        times = torch.as_tensor(scheduler.timesteps)
        assert len(times) == steps
        assert times[0] == 599 and times[-1] >= 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_depends_on_its_seed_alone(backbone, vectors, sampler):
    settings = SamplingSettings(sampler, **SMALL)
    three = sample(backbone, ["a <ada> cat"] * 3, vectors, settings, seed=5)
    assert three.shape == (3, 3, 64, 64)
    assert three.min() >= 0 and three.max() <= 1
    one = sample(backbone, "a <ada> cat", vectors, settings, seed=6)
    torch.testing.assert_close(one[0], three[1], atol=1e-4, rtol=0)
    listed = sample(backbone, ["a <ada> cat"] * 2, vectors, settings, seed=[6, 5])
    torch.testing.assert_close(listed, three[[1, 0]], atol=1e-4, rtol=0)
    assert (three[0] - three[1]).abs().max() > 1e-3


def test_a_seed_repeats_whatever_was_drawn_before(backbone):
    settings = SamplingSettings(**SMALL)
    first = sample_latents(backbone, "a", settings=settings, seed=3)
    torch.randn(7)
    assert torch.equal(first, sample_latents(backbone, "a", settings=settings, seed=3))


def test_guidance_goes_from_the_negative_prompt_to_the_prompt(backbone, vectors):
    settings = SamplingSettings(guidance=2.5, negative="a dog")
    both = guided_conditioning(backbone, ["a <ada> cat", "a fish"], vectors, settings)
    assert both.positions == [{}, {}, {"ada": [2, 3]}, {}]
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor(400)
    times = torch.tensor([400, 400])
    with torch.no_grad():
        negative = backbone.predict(noisy, times, both[:2])
        positive = backbone.predict(noisy, times, both[2:])
        found = guided_prediction(backbone, noisy, t, both, 2.5)
        expected = -1.5 * negative + 2.5 * positive
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        alone = guided_prediction(backbone, noisy, t, both[2:], 1.0)
        torch.testing.assert_close(alone, positive, rtol=1e-4, atol=1e-4)


def test_an_edit_is_guided_from_the_prompt_to_the_edited_prompt(backbone, vectors):
    settings = SamplingSettings(guidance=2.5, negative="a dog", edit="with a hat")
    texts = ["a <ada> cat", "a fish"]
    every = guided_conditioning(backbone, texts, vectors, settings)
    edited = guided_conditioning(
        backbone, [f"{text}, with a hat" for text in texts], vectors, SamplingSettings(guidance=1)
    )
    assert torch.equal(every.context[4:], edited.context)
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor(400)
    times = torch.tensor([400, 400])
    with torch.no_grad():
        negative, prompt, more = (
            backbone.predict(noisy, times, every[rows : rows + 2]) for rows in (0, 2, 4)
        )
        found = guided_prediction(backbone, noisy, t, every, 2.5, edit_strength=3.0)
        expected = negative + 2.5 * (prompt - negative) + 3 * (more - prompt)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        found = guided_prediction(backbone, noisy, t, every[2:], 1.0, edit_strength=3.0)
        torch.testing.assert_close(found, prompt + 3 * (more - prompt), rtol=1e-4, atol=1e-4)


def test_an_edit_as_strong_as_guidance_is_plain_guidance_of_the_edited_prompt(backbone):
    """e0 + s (ec - e0) + s (ee - ec) = e0 + s (ee - e0)."""
    settings = SamplingSettings("ddim", guidance=3.0, edit="with a hat", edit_strength=3.0, **SMALL)
    edited = sample_latents(backbone, "a cat", settings=settings)
    plain = SamplingSettings("ddim", guidance=3.0, **SMALL)
    expected = sample_latents(backbone, "a cat, with a hat", settings=plain)
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-3)
    nothing = SamplingSettings("ddim", guidance=3.0, edit="a", edit_strength=0.0, **SMALL)
    torch.testing.assert_close(
        sample_latents(backbone, "a cat", settings=nothing),
        sample_latents(backbone, "a cat", settings=plain),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("guidance", [1.0, 2.5, 7.0])
def test_an_edit_is_twice_as_strong_as_its_words_in_the_prompt(backbone, guidance):
    """Of all guidances: a fixed strength of 5 is less than the prompt's own 7."""
    settings = SamplingSettings("ddim", guidance=guidance, edit="with a hat", **SMALL)
    expected = replace(settings, edit_strength=2 * guidance)
    assert torch.equal(
        sample_latents(backbone, "a cat", settings=settings),
        sample_latents(backbone, "a cat", settings=expected),
    )


def test_without_guidance_the_unet_sees_the_prompts_alone(backbone):
    rows = []
    backbone.unet.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    sample_latents(backbone, ["a", "b"], settings=SamplingSettings(guidance=1.0, **SMALL))
    assert rows == [2] * 4
    rows.clear()
    sample_latents(backbone, ["a", "b"], settings=SamplingSettings(**SMALL))
    assert rows == [4] * 4
    rows.clear()
    sample_latents(backbone, ["a", "b"], settings=SamplingSettings(edit="c", **SMALL))
    assert rows == [6] * 4


def test_sizes_seeds_and_callback(backbone):
    seen = []
    settings = SamplingSettings("ddim", steps=3, width=96, height=64)
    latents = sample_latents(
        backbone,
        "a",
        settings=settings,
        callback=lambda done, steps, z: seen.append((done, steps, z.shape)),
    )
    assert latents.shape == (1, 4, 8, 12)
    assert not latents.requires_grad
    assert seen == [(done, 3, latents.shape) for done in (1, 2, 3)]
    with pytest.raises(InputError, match="multiple of 8"):
        sample(backbone, "a", settings=SamplingSettings(width=100, height=64))
    with pytest.raises(InputError, match="2 seeds for 1 images"):
        sample(backbone, "a", seed=[1, 2])
    with pytest.raises(InputError, match="euler_a, ddim, dpmpp_2m"):
        SamplingSettings(sampler="plms")


def test_sampling_in_bf16(make_backbone):
    backbone = make_backbone()
    with backbone.training(torch.bfloat16):
        images = sample(backbone, "a", settings=SamplingSettings(**SMALL))
    assert images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize(("bias", "value"), [(5.0, 1.0), (-5.0, 0.0)])
def test_images_are_clamped(backbone, bias, value):
    with torch.no_grad():
        backbone.vae.decoder.layers[-1].bias.fill_(bias)
    images = sample(backbone, "a", settings=SamplingSettings(**SMALL))
    assert torch.equal(images, torch.full_like(images, value))


def test_a_noise_level_between_two_steps_belongs_to_the_first():
    levels = [14.6, 7.0, 3.0, 1.0, 0.0]
    assert [share_of(level, levels) for level in (14.6, 8, 7, 3, 1.0, 0.5)] == [
        0, 0, 0.25, 0.5, 0.75, 0.75,
    ]  # fmt: skip
    assert share_of(20.0, levels) == 0
    assert share_of(7.0000002, levels) == 0.25
    assert share_of(1.0, [1.0, 0.0]) == 0


def test_a_black_picture_is_an_error(backbone):
    with torch.no_grad():
        backbone.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="would be black"):
        sample(backbone, "a cat", settings=SamplingSettings("ddim", **SMALL))


def test_the_text_encoders_lora_may_have_a_strength_of_its_own(backbone, vectors):
    """As the authors' release draws: 0.6 in the UNet, 0.9 in the text encoder."""
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    width = backbone.word_vectors("clip_l", "a").shape[1]
    lora = LoraWeights(torch.ones(1, width), 0.1 * torch.ones(width, 1), 1.0)
    adapter = Adapter({f"clip_l.{name}": lora}, vectors.tensors(), "sd1")

    def encoded(*strengths: float) -> torch.Tensor:
        with adapted(backbone, adapter, *strengths):
            return backbone.encode_prompts([Prompt("a photo")], vectors).context

    assert not torch.equal(encoded(1.0), encoded(1.0, 0.5))
    assert torch.equal(encoded(0.3, 0.5), encoded(0.5))
    with pytest.raises(InputError, match="strength is nan"):
        encoded(1.0, float("nan"))


def test_an_adapter_of_another_width_strength_or_family_is_refused(backbone, vectors):
    fits = Adapter({}, vectors.tensors(), "sd1")
    with adapted(backbone, fits):
        pass
    wide = Adapter({}, {"ada": {"clip_l": torch.ones(1, 768)}}, "sd1")
    for adapter, strength, message in (
        (wide, 1.0, "'ada' has vectors of width 768, and .* 32 wide"),
        (fits, float("nan"), "strength is nan"),
        (fits, 1e30, "strength"),
        (replace(fits, family="sd2"), 1.0, r"for Stable Diffusion 2\.x and .* 1\.x"),
    ):
        with pytest.raises(InputError, match=message), adapted(backbone, adapter, strength):
            pass
