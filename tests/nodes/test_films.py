"""Qwen-Image and Krea 2 in ComfyUI: diffusers' numbers, stock loaders, and a whole training.

Both draw a film of one frame, and ask a Qwen that also sees in the same words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ._families import near, prompts, seeded
from .joint import (
    LEVELS,
    SIZE,
    TEXTS,
    adapter_of,
    apart,
    check_bfloat16,
    check_bias,
    check_columns,
    check_file_in_diffusers,
    check_held,
    check_stock_loaders,
    lora_of,
    losses_and_gradients,
    noise,
    recorded,
    saved,
    train,
)

pytestmark = pytest.mark.usefixtures("executor")

FAMILIES = ("qwen_image", "krea2")
MIDDLE = {"qwen_image": "transformer_blocks.1.attn", "krea2": "blocks.1.attn"}
"""The layer of three whose maps are looked at, as ComfyUI calls it."""


@pytest.fixture(scope="module", params=FAMILIES)
def film(request) -> Any:
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture
def ours(pack, film) -> Any:
    return pack.comfy.ComfyBackbone(film.model, film.clip, film.vae)


@pytest.fixture
def key(ours) -> str:
    (key,) = ours.text_encoders
    return key


def reader(make, key: str) -> Any:
    """transformers' half of a Qwen that reads words, of the sizes of ComfyUI's."""
    import transformers

    turning = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
    if key == "qwen25_7b":
        config: Any = transformers.Qwen2_5_VLTextConfig(
            **make.qwen_vl, vocab_size=152064, rms_norm_eps=1e-6, rope_parameters=turning
        )
        return transformers.Qwen2_5_VLTextModel(config).eval()
    turning |= {"rope_theta": 5000000.0, "mrope_section": [24, 20, 20]}
    config = transformers.Qwen3VLTextConfig(
        **make.krea2_text, vocab_size=151936, head_dim=128, rope_parameters=turning
    )
    return transformers.Qwen3VLTextModel(config).eval()


@pytest.fixture(scope="module")
def theirs(pack, make, film, comfyui: Path) -> Any:
    """The diffusers backbone of the same weights."""
    from transformers import Qwen2Tokenizer

    with torch.inference_mode(False), torch.no_grad():
        ((key, part),) = film.clip.cond_stage_model.named_children()
        own = part.transformer.state_dict()
        encoder = reader(make, key)
        encoder.load_state_dict({n: own[f"model.{n}"].clone() for n in encoder.state_dict()})
        words = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
        twin = {"qwen25_7b": make.qwen_image_twin, "qwen3vl_4b": make.krea2_twin}[key]
        return pack("magicapture.backbones").DiffusersBackbone(
            unet=twin(film.model),
            vae=make.film_vae_twin(film.vae),
            text_encoders={key: encoder},
            tokenizers={key: Qwen2Tokenizer.from_pretrained(words)},
            schedule=pack("nodes._comfy.models").schedule_of(film.model),
        )


@pytest.fixture
def phrases(pack) -> Any:
    tokens = pack("magicapture.tokens")
    with torch.inference_mode(False):
        return tokens.TokenVectors({}, {"ada": tokens.Phrase("ada lovel", "woman")})


def test_prompts_are_those_of_stock_nodes(pack, ours, film, key, phrases) -> None:
    """The plain words, alone and beside longer ones, with odd signs; without the template's."""
    import nodes

    texts = (*TEXTS[:2], "a (photo:1.2), of\nit's 3 {x} <y>", "a")
    with ours.training(None), torch.no_grad():
        told = ours.encode_prompts(prompts(pack, *texts), phrases)
    for row, text in enumerate(texts):
        plain = text.replace("<ada>", "ada lovel")
        ((context, _),) = nodes.CLIPTextEncode().encode(film.clip, plain)[0]
        near(told.context[row : row + 1, : int(told.extra["length"][row])], context)
        ids = [one[0] for one in film.clip.tokenize(plain)[key][0]]
        line = ours.layout(key, pack("magicapture.tokens").Prompt(text), phrases)
        assert list(line.ids) == ids
        assert line.head == 34  # as diffusers counts them


def test_prompts_and_predictions_are_those_of_diffusers(pack, ours, theirs, phrases) -> None:
    assert ours.family == theirs.family and ours.family in FAMILIES
    assert ours.schedule.prediction == "flow"
    assert ours.schedule.levels.shift == pytest.approx(3.158, rel=1e-3)  # exp(1.15)
    noisy, levels = noise(ours), torch.tensor(LEVELS)
    texts = prompts(pack, *TEXTS)
    with ours.training(None), theirs.training(None), torch.no_grad():
        own, other = (b.encode_prompts(texts, phrases) for b in (ours, theirs))
        assert own.positions == other.positions and own.positions[0]["ada"] != []
        lengths = own.extra["length"].tolist()
        assert lengths == other.extra["length"].tolist() and lengths[0] < lengths[1]
        for one, two, length in zip(own.context, other.context, lengths, strict=True):
            near(one[:length], two[:length])
        near(*(b.predict(noisy, levels, c) for b, c in ((ours, own), (theirs, other))))


def test_pictures_are_those_of_diffusers_and_of_stock_nodes(ours, theirs, film) -> None:
    """Films of one frame, and the mean and deviation of each of the latents' channels."""
    images = seeded(2, 3, 64, 96).sigmoid()
    with ours.training(None), torch.no_grad():
        latents = ours.encode(images)
        drawn = ours.decode(latents)
    assert latents.shape == (2, 16, *SIZE) and ours.downscale == theirs.downscale == 8
    with torch.no_grad():
        near(latents, theirs.encode(images), 1e-3)
        near(drawn, theirs.decode(latents), 1e-3)
    import nodes

    raw = film.model.model.latent_format.process_out(latents[:, :, None])
    (stock,) = nodes.VAEDecode().decode(film.vae, {"samples": raw})
    near(drawn.clamp(0, 1), stock.movedim(-1, 1), 1e-3)


def test_the_gradient_of_the_decoder_is_that_of_diffusers(ours, theirs) -> None:
    """Whose own is that of central differences."""
    found = []
    for backbone in (ours, theirs):
        with torch.inference_mode(False), torch.enable_grad(), backbone.training(None):
            latents = seeded(2, 16, 4, 6).requires_grad_()
            backbone.decode_fast(latents).square().mean().backward()
            found.append(latents.grad)
    near(*found, share=1e-3)


def test_the_gradient_of_a_tiny_decoder_is_that_of_central_differences(pack, film) -> None:
    """As it decodes in a workflow, frame by frame; 0.3.64 has none for films."""
    found = pytest.importorskip("comfy.taesd.taehv", reason="this ComfyUI has no TAEHV")
    import comfy.sd

    with torch.inference_mode():
        state = {}
        for i, (name, value) in enumerate(found.TAEHV(16).state_dict().items()):
            inputs = value[0].numel() if value.ndim > 1 else 1000
            state[name] = seeded(*value.shape, seed=i) * (2 / inputs) ** 0.5
        decoder = comfy.sd.VAE(sd=dict(state))
    parts = film.model, film.clip, film.vae
    quick = pack.comfy.ComfyBackbone(*parts, decoder)
    assert quick.has_fast_decoder and not decoder.first_stage_model.parallel
    with torch.inference_mode(False), torch.enable_grad():
        plain = found.TAEHV(16).double()
        plain.load_state_dict(state)
        weight = seeded(1, 3, 32, 32, seed=1)
        latents, direction = seeded(1, 16, 4, 4), seeded(1, 16, 4, 4, seed=2)
        latents.requires_grad_()
        with quick.training(None):
            image = quick.decode_fast(latents)
            (image * weight).sum().backward()
        assert not decoder.first_stage_model.parallel
        with torch.no_grad():
            mean, deviation = (
                getattr(film.model.model.latent_format, name).double().clone()
                for name in ("latents_mean", "latents_std")
            )

            def drawn(step: float) -> Tensor:
                at = (latents + step * direction).double()[:, :, None]
                return (plain.decode(at * deviation + mean)[:, :, 0] + 1) / 2

            near(image, drawn(0).float())
            ends = [(drawn(step) * weight).sum() for step in (1e-6, -1e-6)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert ((latents.grad * direction).sum() - expected).abs() <= 1e-2 * expected.abs()


def test_in_bfloat16_it_is_nearly_the_same(pack, ours, phrases) -> None:
    check_bfloat16(pack, ours, phrases)


def test_maps_are_an_explicit_softmax_and_change_nothing(pack, ours, theirs, phrases) -> None:
    own, other = (recorded(pack, backbone, phrases) for backbone in (ours, theirs))
    assert own.sites == (MIDDLE[ours.family],)
    blocks = [pack("magicapture.attention").block_of(one.sites[0]) for one in (own, other)]
    assert blocks[0] == blocks[1]  # by one name in recipes, whatever the host
    assert torch.equal(own.plain, own.found)
    groups = [one for one, _ in own.parts[:2]]  # rows run by the length of their texts
    assert [one.index for one in groups] == [(0, 2), (1,)]
    lengths = own.told.extra["length"].tolist()
    assert own.maps.keys == other.maps.keys == tuple((row, "ada") for row in range(3))
    for one in groups:
        length = lengths[one.index[0]]
        assert one.size == (4, 6) and one.words == slice(0, length)
        assert one.cells == slice(length, length + 24) and one.key.shape[2] == length + 24
        shares = (one.query @ one.key.mT / 4).softmax(-1).mean(1)[:, one.cells]
        for place, row in enumerate(one.index):
            expected = shares[place][:, own.told.positions[row]["ada"]].sum(-1)
            torch.testing.assert_close(own.maps.values[row].flatten(), expected)
    near(own.maps.values, other.maps.values)
    near(own.spread, other.spread)


def test_a_bias_is_an_explicit_mask(pack, ours, theirs, phrases) -> None:
    check_bias(pack, ours, theirs, phrases, width=16)


@pytest.mark.parametrize("blocks", [0, 3], ids=["plain", "checkpointed"])
def test_the_same_losses_and_gradients_as_in_diffusers(pack, ours, theirs, phrases, blocks) -> None:
    parts, state = ours.parts_of(ours.unet), lora_of(pack, ours, 0.1)
    assert len(state) == 3 * {"qwen_image": 12, "krea2": 8}[ours.family]
    own = losses_and_gradients(pack, ours, state, phrases, blocks)
    other = losses_and_gradients(pack, theirs, apart(pack, ours, state), phrases, blocks)
    assert own.losses == pytest.approx(other.losses, rel=1e-3)
    unread = [name for name, (_, up) in other.lora.items() if not up.any()]
    # Of the words behind Qwen-Image's last block nothing is read.
    assert len(unread) == {"qwen_image": 4, "krea2": 0}[ours.family]
    for name, pair in own.lora.items():
        (part,) = parts[name]
        for one, two in zip(pair, other.lora[part.name], strict=True):
            assert part.name not in unread or not one.any()
            if part.name not in unread:
                near(one, two, 2e-3)


# -- stock nodes ------------------------------------------------------------------------------


@pytest.fixture
def adapter(pack, ours) -> Any:
    """An adapter of a phrase, its LoRA far from nothing."""
    return adapter_of(pack, ours)


@pytest.fixture
def file(pack, make, adapter):
    with saved(pack, make, adapter, "film-test") as path:
        yield path


def test_stock_loaders_draw_what_apply_adapter_draws(
    pack, film, adapter, file, ksample, caplog
) -> None:
    text = "a photo of ada lovel woman"
    check_stock_loaders(pack, film, adapter, file, text, ksample, caplog)


def test_encode_prompt_marks_the_phrases_columns(pack, ours, film, key, adapter) -> None:
    """Of the context, which lacks the template's first words."""
    check_columns(pack, ours, key, film.clip, adapter)
    marks = pack("nodes._comfy.marks")
    assert "color" in pack("magicapture.families").FAMILIES[ours.family].encoder(key).template
    with pytest.raises(pack("magicapture.errors").InputError, match="has no 'color'"):
        marks.encode_marked(film.clip, "a photo of a woman", (), inside="color")


def test_the_file_does_the_same_in_diffusers(pack, ours, theirs, phrases, adapter, file) -> None:
    check_file_in_diffusers(pack, ours, theirs, phrases, adapter, file)


def test_other_models_are_refused_in_words(pack, make, tiny, film, ours, key, adapter) -> None:
    errors, backbone = pack("magicapture.errors"), pack.comfy.ComfyBackbone
    model, clip, vae = film.model, film.clip, film.vae
    title = pack("magicapture.families").FAMILIES[ours.family].title
    refused = errors.UnsupportedModelError
    with pytest.raises(refused, match=f"'clip' holds clip_l, and {title} at 'model' reads {key}"):
        backbone(model, tiny.clip, vae)
    with pytest.raises(refused, match=f"'clip' holds {key}"):
        backbone(tiny.model, clip, tiny.vae)
    with pytest.raises(refused, match="'vae' holds"):
        backbone(model, clip, tiny.vae)
    with pytest.raises(refused, match="'vae' holds WanVAE"):
        backbone(tiny.model, tiny.clip, vae)
    other = clip.clone()
    other.tokenizer = type("Other", (), {key: getattr(clip.tokenizer, key)})()
    with pytest.raises(refused, match=f"with the type {ours.family}"):
        backbone(model, other, vae)
    with pytest.raises(errors.InputError, match=f"for {title} and the base model is"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)
    with pytest.raises(refused, match="references work with the UNets of Stable Diffusion"):
        pack("nodes._comfy.magicface").prepare(model, clip, vae, (), "", 64)
    edit = getattr(make, ours.family)()  # as newer ComfyUIs note it of one
    edit.model.model_config.unet_config["default_ref_method"] = "index_timestep_zero"
    with pytest.raises(refused, match=f"Tiny.* MagiCapture trains Stable Diffusion .*{title}"):
        backbone(edit, clip, vae)


def test_a_text_encoder_of_another_width_is_refused(pack, make, tiny_qwen_image) -> None:
    other = make.qwen_image(joint_attention_dim=64)
    with pytest.raises(
        pack("magicapture.errors").UnsupportedModelError,
        match="128 wide and the model at 'model' expects 64",
    ):
        pack.comfy.ComfyBackbone(other, tiny_qwen_image.clip, tiny_qwen_image.vae)


def test_a_training_moves_the_lora_and_leaves_the_model_as_it_was(pack, ours) -> None:
    """Two phases of phrases, every loss; the tokens' vectors that were asked for are none."""
    done = train(pack, ours)
    assert {"source", "style", "composed", "attention"} <= done.losses
    assert sum("learns no vectors" in text for text in done.told) == 2
    assert done.adapter.family == ours.family and done.adapter.tokens == {}
    assert {key.partition(".")[0] for key in done.adapter.lora} == {"transformer"}
    still = {name for name, of in done.adapter.lora.items() if not of.up.any()}
    unread = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    last = {f"transformer.transformer_blocks.2.{name}" for name in unread}
    assert still == last & done.adapter.lora.keys()
    assert bool(still) == (ours.family == "qwen_image")


# -- refocusing while a stock sampler draws --------------------------------------------------------


@pytest.mark.parametrize("how", [{"bias": 30.0}, {"bias": 0.0, "gradient": 0.05, "end": 1.0}])
def test_a_stock_sampler_holds_the_phrase_to_its_region(
    pack, film, adapter, monkeypatch, how
) -> None:
    held = check_held(pack, film, adapter, MIDDLE[adapter.family], how, monkeypatch)
    assert held.shape == (1, 16, 1, 8, 12)


def test_a_preview_shows_where_the_phrase_is_looked_for(pack, film, adapter) -> None:
    """In latents as a sampler gives them, a film of one frame."""
    marks, looking = pack("nodes._comfy.marks"), pack("nodes._comfy.looking")
    positive = marks.encode_marked(film.clip, "a photo of ada lovel woman", adapter.concepts)
    latent = {"samples": seeded(1, 16, 1, *SIZE)}
    maps = looking.look(film.model, positive, latent, (0.2, 0.6))
    assert [one.token for one in maps] == ["ada", "ada"]
    for one in maps:
        assert one.values.shape[-2:] == (4, 6) and one.values.min() >= 0 and one.values.any()
