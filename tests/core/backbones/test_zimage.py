"""Z-Image against diffusers' pipeline: what it is told, its maps, its files, its gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from safetensors.torch import load_file, save_file

from magicapture.attention import captured, cross_attentions, select
from magicapture.backbones import load_backbone
from magicapture.errors import InputError, StorageError, UnsupportedModelError
from magicapture.lora import target_names
from magicapture.refocusing.focus import foci
from magicapture.sampling import SamplingSettings, sample
from magicapture.tokens import Concept, Prompt
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

LONG = "a photo of <ada> woman in the style of a person of the photo of the woman"
TEXTS = [LONG, "a <ada> woman"]
"""Of more words than 32, and of fewer."""


@pytest.fixture
def pipeline(zimage_backbone) -> ZImagePipeline:
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=zimage_backbone.vae,
        text_encoder=zimage_backbone.text_encoders["qwen3_4b"],
        tokenizer=zimage_backbone.tokenizers["qwen3_4b"],
        transformer=zimage_backbone.unet,
    )


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(zimage_backbone, pipeline) -> None:
    texts = ["a photo of a woman (old), in the rain.", "a", ""]
    found = zimage_backbone.encode_prompts(prompts(*texts), NOTHING)
    expected, _ = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False)
    assert found.extra["length"].tolist() == [len(one) for one in expected]
    for row, length, one in zip(found.context, found.extra["length"], expected, strict=True):
        torch.testing.assert_close(row[:length], one)


@torch.no_grad()
def test_a_phrase_is_told_as_its_words(zimage_backbone) -> None:
    told = zimage_backbone.encode_prompts(prompts(*TEXTS), ADA)
    spelled = [text.replace("<ada>", "ada lovel") for text in TEXTS]
    plain = zimage_backbone.encode_prompts(prompts(*spelled), NOTHING)
    assert torch.equal(told.context, plain.context)
    tokenizer = zimage_backbone.tokenizers["qwen3_4b"]
    line = zimage_backbone.layout("qwen3_4b", Prompt(TEXTS[1]), ADA)
    said = tokenizer.decode([line.ids[column] for column in told.positions[1]["ada"]])
    assert said == " ada lovel woman"
    assert tokenizer.decode(line.ids) == (
        "<|im_start|>user\na ada lovel woman<|im_end|>\n<|im_start|>assistant\n"
    )
    concept = Concept("ada", "subject", "woman", vectors=0, phrase="ada lovel")
    (_, focus) = foci(zimage_backbone, prompts(*TEXTS), told, ADA, [concept])
    assert focus[0].columns == tuple(told.positions[1]["ada"])
    assert focus[0].word == focus[0].columns[-1:]


@torch.no_grad()
def test_the_transformer_is_told_what_the_pipeline_tells_it(zimage_backbone, pipeline) -> None:
    texts = ["a photo", "a photo of a woman in the style"]
    told = zimage_backbone.encode_prompts(prompts(*texts), NOTHING)
    noisy = torch.randn(2, 4, 12, 16)
    seen = []
    hook = zimage_backbone.unet.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    steps = []

    def step(prediction, timestep, latents, return_dict):
        steps.append(prediction)
        return (latents,)

    pipeline.scheduler.step = step
    pipeline(list(texts), height=96, width=128, num_inference_steps=2, guidance_scale=0,
             latents=noisy.clone(), output_type="latent")  # fmt: skip
    level = 1 - seen[1][0][1]
    found = zimage_backbone.predict(noisy, level, told)
    hook.remove()
    (_, kwargs), (theirs, _) = seen[2], seen[1]
    torch.testing.assert_close(kwargs["t"], theirs[1])
    assert 0.5 < float(level[0]) < 1
    for own, other in ((kwargs["x"], theirs[0]), (kwargs["cap_feats"], theirs[2])):
        for one, two in zip(own, other, strict=True):
            torch.testing.assert_close(one, two)
    torch.testing.assert_close(found, steps[1])


@torch.no_grad()
def test_rows_of_one_batch_do_not_see_each_other(zimage_backbone) -> None:
    told = zimage_backbone.encode_prompts(prompts(*TEXTS), ADA)
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    together = zimage_backbone.predict(noisy, levels, told)
    for row in (slice(0, 1), slice(1, 2)):
        alone = zimage_backbone.predict(noisy[row], levels[row], told[row])
        torch.testing.assert_close(alone, together[row])


@torch.no_grad()
def test_maps_are_an_explicit_softmax_and_change_nothing(zimage_backbone) -> None:
    """Of rows of two lengths: the shorter one's padding has no attention at all."""
    told = zimage_backbone.encode_prompts(prompts(*TEXTS), ADA)
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    plain = zimage_backbone.predict(noisy, levels, told)
    assert list(cross_attentions(zimage_backbone.unet)) == [
        f"layers.{i}.attention" for i in range(4)
    ]
    assert select(zimage_backbone.unet) == ["layers.2.attention"]
    with captured(zimage_backbone.attention) as capture:
        with capture.recording():
            found = zimage_backbone.predict(noisy, levels, told)
        assert torch.equal(found, plain)
        (site,) = capture.recorded()
        of = capture.seen(site)
        (maps,) = capture.maps(told.positions, SIZE)
    assert of.size == (4, 6) and of.cells == slice(0, 24)
    length = int(told.extra["length"].max())
    assert length > 32 and of.words == slice(32, 32 + length)
    logits = of.query @ of.key.mT / 4
    own = 32 + -(-told.extra["length"] // 32) * 32  # words of a row, filled up
    hidden = torch.arange(logits.shape[-1]) >= own[:, None]
    shares = logits.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1).mean(1)
    assert maps.keys == ((0, "ada"), (1, "ada"))
    for row, values in enumerate(maps.values):
        columns = [32 + column for column in told.positions[row]["ada"]]
        expected = shares[row, :24][:, columns].sum(-1)
        torch.testing.assert_close(values.flatten(), expected)


def test_a_bias_is_an_explicit_mask(zimage_backbone) -> None:
    check_bias(zimage_backbone, TEXTS, "layers.1.attention")


def test_the_gradient_is_that_of_central_differences(zimage_backbone) -> None:
    assert len(lora_of(zimage_backbone)) == 4 * 7
    assert check_gradient(zimage_backbone, TEXTS, blocks=6) == set()


def test_in_bfloat16_it_is_nearly_the_same(zimage_backbone) -> None:
    check_bfloat16(zimage_backbone, TEXTS, (0.3, 0.7))


def test_a_run_is_named_by_the_vocabulary_as_well(zimage_backbone) -> None:
    before = zimage_backbone.fingerprint()
    assert zimage_backbone.fingerprint() == before
    zimage_backbone.tokenizers["qwen3_4b"].add_tokens(["lovel"])
    assert zimage_backbone.fingerprint() != before


def test_lora_goes_into_the_layers_where_both_meet(zimage_backbone) -> None:
    unet = zimage_backbone.unet
    attention = {f"layers.{i}.attention.to_{p}" for i in range(4) for p in ("q", "k", "v", "out.0")}
    assert set(target_names(unet, "cross_and_self", "transformer")) == attention
    cross = {name for name in attention if "out" not in name}
    assert set(target_names(unet, "cross", "transformer")) == cross
    feed = {f"layers.{i}.feed_forward.w{n}" for i in range(4) for n in (1, 2, 3)}
    assert set(target_names(unet, "all_linear", "transformer")) == attention | feed


def test_a_folder_in_pieces(pipeline, zimage_backbone, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    loaded = load_backbone(tmp_path)
    assert loaded.family == "zimage" and set(loaded.text_encoders) == {"qwen3_4b"}
    assert loaded.schedule.prediction == "flow"
    assert loaded.schedule.levels.shift == 3.0  # type: ignore[attr-defined]
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        own, other = (b.encode_prompts(prompts(*TEXTS), ADA) for b in (loaded, zimage_backbone))
        torch.testing.assert_close(own.context, other.context, rtol=0, atol=0)
        assert torch.equal(
            loaded.predict(noisy, levels, own), zimage_backbone.predict(noisy, levels, other)
        )
    half = load_backbone(tmp_path, dtype=torch.bfloat16)
    text = half.text_encoders["qwen3_4b"]
    assert text.rotary_emb.inv_freq.dtype == torch.float32 and half.dtype == torch.bfloat16
    with loaded.training(torch.bfloat16):
        assert loaded.text_encoders["qwen3_4b"].rotary_emb.inv_freq.dtype == torch.float32
        assert loaded.dtype == torch.bfloat16


def test_the_text_encoder_may_have_its_head(pipeline, zimage_backbone, tmp_path) -> None:
    """The published one is stored as a Qwen3ForCausalLM."""
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = {f"model.{name}": value for name, value in load_file(path).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    with torch.no_grad():
        own, other = (
            b.encode_prompts(prompts(LONG), ADA).context
            for b in (load_backbone(tmp_path), zimage_backbone)
        )
    assert torch.equal(own, other)


def test_other_kinds_are_refused_in_words(pipeline, tiny, tmp_path) -> None:
    folders = iter(map(str, range(9)))

    def refused(match: str, error: type[Exception] = UnsupportedModelError, **changes) -> None:
        folder = tmp_path / next(folders)
        pipeline.register_modules(**changes)
        pipeline.save_pretrained(folder)
        with pytest.raises(error, match=match):
            load_backbone(folder)

    own = pipeline.transformer
    refused("Omni", transformer=tiny.zimage(siglip_feat_dim=8))
    refused("8 channels", transformer=tiny.zimage(in_channels=8))
    refused("a text encoder 64", transformer=own, text_encoder=tiny.qwen(hidden_size=64))
    refused("text encoder of the kind clip", text_encoder=tiny.text_encoder(hidden_size=48))
    folder = tmp_path / "words"
    pipeline.register_modules(text_encoder=tiny.qwen())
    pipeline.save_pretrained(folder)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(StorageError, match="no tokenizer"):
        load_backbone(folder)


def test_pictures_are_drawn_by_guidance_with_a_negative_prompt(zimage_backbone) -> None:
    few = SamplingSettings("ddim", steps=2, width=64, height=80)
    image = sample(zimage_backbone, "a photo of a woman", settings=few)
    assert image.shape == (1, 3, 80, 64)
    other = sample(zimage_backbone, "a photo of a woman", settings=replace(few, negative="a style"))
    assert not torch.equal(image, other)
    assert few.scale("zimage") == 4
    with pytest.raises(InputError, match="multiples of 16"):
        sample(zimage_backbone, "a photo", settings=replace(few, height=72))
