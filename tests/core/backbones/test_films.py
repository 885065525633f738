"""Qwen-Image and Krea 2 against diffusers' pipelines: what they are told, maps, files, gradients.

Both draw a film of one frame, and ask a Qwen that also sees in the same words.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, QwenImagePipeline
from safetensors.torch import load_file, save_file

from magicapture.attention import captured, cross_attentions, select
from magicapture.backbones import load_backbone
from magicapture.errors import InputError, UnsupportedModelError
from magicapture.families import FAMILIES
from magicapture.lora import target_names
from magicapture.refocusing.focus import foci
from magicapture.sampling import SamplingSettings, sample
from magicapture.tokens import Concept, Phrase, Prompt, TokenVectors
from tests.core.joint import (
    ADA,
    NOTHING,
    SIZE,
    check_bfloat16,
    check_bias,
    check_gradient,
    lora_of,
    prompts,
)

TEXTS = ["a photo of <ada> woman in the style of a person", "a <ada> woman"]
HEAD, TAIL = FAMILIES["qwen_image"].encoders[0].template.split("{}")


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ASKED = {  # what of a block's attention the picture asks the words by
    "qwen_image": ("to_q", "add_k_proj", "add_v_proj"),
    "krea2": ("to_q", "to_k", "to_v"),
}
FURTHER = {
    "qwen_image": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "krea2": ("to_gate",),
}
FEEDING = {
    "qwen_image": [f"{side}_mlp.net.{n}" for side in ("img", "txt") for n in ("0.proj", "2")],
    "krea2": ["ff.gate", "ff.up", "ff.down"],
}
ONLY_QWEN = pytest.mark.parametrize("backbone", ["qwen_image"], indirect=True)


@pytest.fixture(params=["qwen_image", "krea2"])
def backbone(request) -> Any:
    return request.getfixturevalue(f"{request.param}_backbone")


@pytest.fixture
def key(backbone) -> str:
    (key,) = backbone.text_encoders
    return key


def shared(backbone) -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": backbone.vae,
        "tokenizer": next(iter(backbone.tokenizers.values())),
        "transformer": backbone.unet,
    }


@pytest.fixture
def pipeline(backbone, tiny) -> Any:
    """With the whole Qwen, of which the backbone has the half that reads."""
    if backbone.family == "krea2":
        made: Any = Krea2Pipeline(text_encoder=tiny.qwen3_vl(), **shared(backbone))
        (encoder,) = FAMILIES["krea2"].encoders
        assert made.text_encoder_select_layers == encoder.layers
        parts = made.prompt_template_encode_prefix, made.prompt_template_encode_suffix
        assert parts == (HEAD, TAIL) == tuple(encoder.template.split("{}"))
        made.prompt_template_encode_num_suffix_tokens = len(made.tokenizer(TAIL).input_ids)
    else:
        made = QwenImagePipeline(text_encoder=tiny.qwen_vl(), **shared(backbone))
        assert made.prompt_template_encode == HEAD + "{}" + TAIL
    # Of the real vocabulary's tokens they are 34; the tests of ComfyUI's nodes count those.
    made.prompt_template_encode_start_idx = len(made.tokenizer(HEAD).input_ids)
    return made


def drawn(pipeline, texts, noisy, **given) -> SimpleNamespace:
    """The last call of the transformer in two steps of a pipeline, without guidance."""
    seen: list[Any] = []
    hook = pipeline.transformer.register_forward_hook(
        lambda _module, _args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True
    )
    (batch, channels, height, width) = noisy.shape
    packed = pipeline._pack_latents(noisy, batch, channels, height, width)
    krea = isinstance(pipeline, Krea2Pipeline)
    guidance = {"guidance_scale": 0.0, "max_sequence_length": 64} if krea else {}
    pipeline(list(texts), height=8 * height, width=8 * width, num_inference_steps=2, latents=packed,
             output_type="latent", **guidance, **given)  # fmt: skip
    hook.remove()
    kwargs, output = seen[-1]
    assert len(seen) == 2
    places = kwargs["hidden_states"], output[0]
    scale = () if krea else (8,)
    latents, velocity = (
        pipeline._unpack_latents(of, 8 * height, 8 * width, *scale)[:, :, 0] for of in places
    )
    return SimpleNamespace(latents=latents, velocity=velocity, kwargs=kwargs)


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(backbone, pipeline) -> None:
    texts = ["a photo of a woman (old), in the rain.", "a", ""]
    found = backbone.encode_prompts(prompts(*texts), NOTHING)
    expected, mask = pipeline.encode_prompt(list(texts))
    assert found.extra["length"].tolist() == mask.sum(1).tolist()
    for row, one, own in zip(found.context, expected, mask.bool(), strict=True):
        length = int(own.sum())  # Krea 2's are filled up between text and end
        torch.testing.assert_close(row[:length], one[own].flatten(1))


@torch.no_grad()
def test_a_phrase_is_told_as_its_words(backbone, key) -> None:
    told = backbone.encode_prompts(prompts(*TEXTS), ADA)
    spelled = [text.replace("<ada>", "ada lovel") for text in TEXTS]
    plain = backbone.encode_prompts(prompts(*spelled), NOTHING)
    assert torch.equal(told.context, plain.context)
    tokenizer = backbone.tokenizers[key]
    line = backbone.layout(key, Prompt(TEXTS[1]), ADA)
    said = tokenizer.decode([line.read[column] for column in told.positions[1]["ada"]])
    assert said == " ada lovel woman"
    assert tokenizer.decode(line.ids) == f"{HEAD}a ada lovel woman{TAIL}"
    assert tokenizer.decode(line.read) == f"a ada lovel woman{TAIL}"


@torch.no_grad()
def test_words_of_the_template_are_none_of_the_prompts(backbone) -> None:
    """The class word may be one of them."""
    text = "a photo of <ada> objects"
    vectors = TokenVectors({}, {"ada": Phrase("ada lovel", "objects")})
    told = backbone.encode_prompts(prompts(text), vectors)
    concept = Concept("ada", "subject", "objects", vectors=0, phrase="ada lovel")
    ((focus,),) = foci(backbone, prompts(text), told, vectors, [concept])
    assert focus.columns == tuple(told.positions[0]["ada"])
    assert focus.word and set(focus.word) <= set(focus.columns)


@torch.no_grad()
def test_the_transformer_is_told_what_the_pipeline_tells_it(backbone, pipeline) -> None:
    """Rows of two lengths, of which the shorter one is masked; and one length."""
    for texts in (["a photo", "a photo of a woman in the style"], ["a photo", "a style"]):
        theirs = drawn(pipeline, texts, torch.randn(2, 4, 12, 16))
        told = backbone.encode_prompts(prompts(*texts), NOTHING)
        seen: list[Any] = []
        hook = backbone.unet.register_forward_pre_hook(
            lambda _module, _args, kwargs, seen=seen: seen.append(kwargs), with_kwargs=True
        )
        level = theirs.kwargs["timestep"]
        assert 0.4 < float(level[0]) < 1
        found = backbone.predict(theirs.latents, level, told)
        hook.remove()
        same = "hidden_states", "timestep"
        assert all(torch.equal(seen[0][name], theirs.kwargs[name]) for name in same)
        masks = [v for k, v in seen[0].items() if k.endswith("_mask")]
        assert [mask is None for mask in masks] == [texts[1] == "a style"]
        torch.testing.assert_close(found, theirs.velocity)


@torch.no_grad()
def test_rows_of_one_batch_do_not_see_each_other(backbone) -> None:
    told = backbone.encode_prompts(prompts(*TEXTS), ADA)
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    together = backbone.predict(noisy, levels, told)
    for row in (0, 1):
        ((_, of),) = told[row : row + 1].by_length()
        alone = backbone.predict(noisy[row : row + 1], levels[row : row + 1], of)
        torch.testing.assert_close(alone, together[row : row + 1])


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(backbone, pipeline) -> None:
    """A channel's mean and deviation, and a film of one frame."""
    vae, images = backbone.vae, torch.rand(2, 3, 32, 48)
    own = backbone.encode(images)
    assert own.shape == (2, 4, 4, 6)
    raw = vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0]
    mean, deviation = (
        torch.tensor(of)[:, None, None] for of in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(own, (raw - mean) / deviation)
    latents = torch.randn(1, 4, 4, 6)
    found = backbone.decode(latents)
    scaled = (latents * deviation + mean)[:, :, None]
    torch.testing.assert_close(found, (vae.decode(scaled).sample[:, :, 0] + 1) / 2)


def test_the_gradient_of_the_decoder_is_that_of_central_differences(backbone) -> None:
    """Also where the picture is over-exposed; `AutoencoderKLQwenImage.decode` clamps there."""
    backbone.vae.double()
    backbone.vae.decoder.conv_out.weight.mul_(30)
    random = torch.Generator().manual_seed(1)
    latents, direction = (
        torch.randn(2, 4, 4, 6, generator=random, dtype=torch.float64) for _ in range(2)
    )
    weight = torch.rand(2, 3, 32, 48, generator=random)
    latents.requires_grad_()
    image = backbone.decode(latents)
    assert (image.detach() > 1).float().mean() > 0.05 and (image.detach() < 0).any()
    (image.square() * weight).mean().backward()
    with torch.no_grad():
        ends = [
            (backbone.decode(latents + step * direction).square() * weight).mean()
            for step in (1e-3, -1e-3)
        ]
    found = (latents.grad * direction).sum()
    torch.testing.assert_close(found.float(), (ends[0] - ends[1]) / 2e-3, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_maps_are_an_explicit_softmax_and_change_nothing(backbone) -> None:
    """Of rows of two lengths: the shorter one's padding has no attention at all."""
    network = backbone.unet
    told = backbone.encode_prompts(prompts(*TEXTS), ADA)
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    plain = backbone.predict(noisy, levels, told)
    assert list(cross_attentions(network)) == [f"transformer_blocks.{i}.attn" for i in range(4)]
    assert select(network) == ["transformer_blocks.2.attn"]
    with captured(backbone.attention) as capture:
        with capture.recording():
            found = backbone.predict(noisy, levels, told)
        assert torch.equal(found, plain)
        (site,) = capture.recorded()
        of = capture.seen(site)
        (maps,) = capture.maps(told.positions, SIZE)
    length = told.context.shape[1]
    assert of.size == (4, 6) and of.words == slice(0, length)
    assert of.cells == slice(length, length + 24)
    logits = of.query @ of.key.mT / 4
    columns = torch.arange(logits.shape[-1])
    hidden = (columns >= told.extra["length"][:, None]) & (columns < length)
    assert hidden.any()
    shares = logits.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1).mean(1)
    assert maps.keys == ((0, "ada"), (1, "ada"))
    for row, values in enumerate(maps.values):
        expected = shares[row, of.cells][:, told.positions[row]["ada"]].sum(-1)
        torch.testing.assert_close(values.flatten(), expected)


def test_a_bias_is_an_explicit_mask(backbone) -> None:
    check_bias(backbone, TEXTS, "transformer_blocks.1.attn")


def test_the_gradient_is_that_of_central_differences(backbone) -> None:
    """Nothing reads what Qwen-Image's last block makes of the words."""
    unread = ("attn.to_add_out", "attn.add_q_proj", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    last = {f"transformer_blocks.3.{name}" for name in unread} & lora_of(backbone).keys()
    assert len(last) == (4 if backbone.family == "qwen_image" else 0)
    assert check_gradient(backbone, TEXTS, blocks=4) == last


def test_in_bfloat16_it_is_nearly_the_same(backbone) -> None:
    check_bfloat16(backbone, TEXTS, (0.25, 0.75))  # told in bfloat16


def test_lora_goes_into_the_layers_where_both_meet(backbone) -> None:
    unet, family = backbone.unet, backbone.family

    def every(*layers: str) -> set[str]:
        return {f"transformer_blocks.{i}.{layer}" for i in range(4) for layer in layers}

    attention = every(*(f"attn.{name}" for name in (*ATTENTION, *FURTHER[family])))
    assert set(target_names(unet, "cross_and_self", "transformer")) == attention
    asked = every(*(f"attn.{name}" for name in ASKED[family]))
    assert set(target_names(unet, "cross", "transformer")) == asked
    keys = {name for name in asked if not name.endswith("to_q")}
    assert set(target_names(unet, "cross_kv", "transformer")) == keys
    everything = attention | every(*FEEDING[family])
    assert set(target_names(unet, "all_linear", "transformer")) == everything


def test_a_folder_in_pieces(pipeline, backbone, key, tmp_path) -> None:
    """The text encoder comes without its eyes and its head."""
    pipeline.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    loaded = load_backbone(tmp_path)
    assert loaded.family == backbone.family and set(loaded.text_encoders) == {key}
    assert loaded.schedule.prediction == "flow" and loaded.downscale == 8
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        own, other = (b.encode_prompts(prompts(*TEXTS), ADA) for b in (loaded, backbone))
        torch.testing.assert_close(own.context, other.context, rtol=0, atol=0)
        assert torch.equal(
            loaded.predict(noisy, levels, own), backbone.predict(noisy, levels, other)
        )
        assert torch.equal(loaded.decode(noisy), backbone.decode(noisy))
    half = load_backbone(tmp_path, dtype=torch.bfloat16)
    assert half.text_encoders[key].rotary_emb.inv_freq.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    # As diffusers has it: Krea 2 adds 1 to its norms' weights.
    norms = {p.dtype for name, p in half.unet.named_parameters() if "norm1" in name}
    assert norms <= {torch.float32}


@ONLY_QWEN
def test_names_and_settings_of_other_versions(pipeline, backbone, tmp_path) -> None:
    """transformers' newer names of the weights, and its older settings, without parts."""
    pipeline.save_pretrained(tmp_path)
    folder = tmp_path / "text_encoder"
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name
        if name.startswith("lm_head")
        else f"model.{name}"
        if name.startswith("visual")
        else name.replace("model.", "model.language_model.", 1): value
        for name, value in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    flat = {**config["text_config"], "model_type": "qwen2_5_vl"}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 2, 2]}
    flat["rope_theta"] = flat.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(flat))
    with torch.no_grad():
        own, other = (
            b.encode_prompts(prompts(*TEXTS), ADA).context
            for b in (load_backbone(tmp_path), backbone)
        )
    assert torch.equal(own, other)


def test_other_kinds_are_refused_in_words(pipeline, backbone, tiny, tmp_path) -> None:
    folders = iter(map(str, range(9)))

    def refused(match: str, **changes) -> None:
        folder = tmp_path / next(folders)
        pipeline.register_modules(**changes)
        pipeline.save_pretrained(folder)
        with pytest.raises(UnsupportedModelError, match=match):
            load_backbone(folder)

    own, make = pipeline.transformer, getattr(tiny, backbone.family)
    refused("32 channels", transformer=make(in_channels=32))
    if backbone.family == "qwen_image":
        refused("edits pictures", transformer=make(zero_cond_t=True))
        refused("a text encoder 48", transformer=make(joint_attention_dim=64))
        index = tmp_path / "0" / "model_index.json"
        told = json.loads(index.read_text())
        index.write_text(json.dumps({**told, "processor": ["transformers", "Qwen2VLProcessor"]}))
        with pytest.raises(UnsupportedModelError, match="a model that edits pictures"):
            load_backbone(tmp_path / "0")
    else:
        refused("reads 11 layers", transformer=make(num_text_layers=11))
        refused("a text encoder 32", transformer=make(text_hidden_dim=64))
        pipeline.register_to_config(text_encoder_select_layers=tuple(range(12)))
        refused("reads other layers", transformer=own)
        pipeline.register_to_config(text_encoder_select_layers=None)
    width = backbone.text_encoders[next(iter(backbone.text_encoders))].config.hidden_size
    refused("kind qwen3", transformer=own, text_encoder=tiny.qwen(hidden_size=width))


def test_pictures_are_drawn_by_guidance_with_a_negative_prompt(backbone) -> None:
    few = SamplingSettings("ddim", steps=2, width=64, height=80)
    image = sample(backbone, "a photo of a woman", settings=few)
    assert image.shape == (1, 3, 80, 64)
    negative = replace(few, negative="a style")
    other = sample(backbone, "a photo of a woman", settings=negative)
    assert not torch.equal(image, other)
    assert few.scale(backbone.family) == {"qwen_image": 4, "krea2": 5.5}[backbone.family]
    with pytest.raises(InputError, match="multiples of 16"):
        sample(backbone, "a photo", settings=replace(few, height=72))
