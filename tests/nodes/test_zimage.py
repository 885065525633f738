"""Z-Image in ComfyUI: the same numbers as in diffusers, stock loaders, and a whole training."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from ._families import near, prompts
from .joint import (
    LEVELS,
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


@pytest.fixture
def ours(pack, tiny_zimage) -> Any:
    return pack.comfy.ComfyBackbone(tiny_zimage.model, tiny_zimage.clip, tiny_zimage.vae)


@pytest.fixture
def theirs(pack, make, tiny_zimage, comfyui: Path) -> Any:
    """The diffusers backbone of the same weights."""
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

    with torch.inference_mode(False), torch.no_grad():
        own = tiny_zimage.clip.cond_stage_model.qwen3_4b.transformer.state_dict()
        config = Qwen3Config(**make.qwen, vocab_size=151936, head_dim=128, rope_theta=1000000.0)
        encoder = Qwen3Model(config).eval()
        encoder.load_state_dict({n: own[f"model.{n}"].clone() for n in encoder.state_dict()})
        network = tiny_zimage.vae.first_stage_model
        halves = {
            "encoder": network.taesd_encoder.state_dict(),
            "decoder": network.taesd_decoder.state_dict(),
        }
        halves = {p: {k: v.clone() for k, v in of.items()} for p, of in halves.items()}
        words = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
        return pack("magicapture.backbones").DiffusersBackbone(
            unet=make.zimage_twin(tiny_zimage.model),
            vae=pack("magicapture.backbones.taesd").taesd_from(halves),
            text_encoders={"qwen3_4b": encoder},
            tokenizers={"qwen3_4b": Qwen2Tokenizer.from_pretrained(words)},
            schedule=pack("nodes._comfy.models").schedule_of(tiny_zimage.model),
        )


@pytest.fixture
def phrases(pack) -> Any:
    tokens = pack("magicapture.tokens")
    with torch.inference_mode(False):
        return tokens.TokenVectors({}, {"ada": tokens.Phrase("ada lovel", "woman")})


def test_prompts_are_those_of_stock_nodes(pack, ours, tiny_zimage, phrases) -> None:
    """The plain words, alone and beside longer ones, with odd signs; and diffusers' template."""
    import nodes

    texts = (*TEXTS[:2], "a (photo:1.2), of\nit's 3 {x} <y>", "a")
    with ours.training(None), torch.no_grad():
        told = ours.encode_prompts(prompts(pack, *texts), phrases)
    for row, text in enumerate(texts):
        plain = text.replace("<ada>", "ada lovel")
        ((context, _),) = nodes.CLIPTextEncode().encode(tiny_zimage.clip, plain)[0]
        length = int(told.extra["length"][row])
        near(told.context[row : row + 1, :length], context)
        ids = [one[0] for one in tiny_zimage.clip.tokenize(plain)["qwen3_4b"][0]]
        prompt = pack("magicapture.tokens").Prompt(text)
        assert list(ours.layout("qwen3_4b", prompt, phrases).ids) == ids


def test_prompts_and_predictions_are_those_of_diffusers(pack, ours, theirs, phrases) -> None:
    assert ours.family == theirs.family == "zimage"
    assert ours.schedule.prediction == "flow" and ours.schedule.levels.shift == pytest.approx(3)
    noisy, levels = noise(ours), torch.tensor(LEVELS)
    texts = prompts(pack, *TEXTS)
    with ours.training(None), theirs.training(None), torch.no_grad():
        own, other = (b.encode_prompts(texts, phrases) for b in (ours, theirs))
        assert own.positions == other.positions and own.positions[0]["ada"] != []
        lengths = own.extra["length"].tolist()
        assert lengths == other.extra["length"].tolist() and lengths[0] < 32 < lengths[1]
        for one, two, length in zip(own.context, other.context, lengths, strict=True):
            near(one[:length], two[:length])
        near(*(b.predict(noisy, levels, c) for b, c in ((ours, own), (theirs, other))))


def test_in_bfloat16_it_is_nearly_the_same(pack, ours, phrases) -> None:
    check_bfloat16(pack, ours, phrases)


def test_maps_are_an_explicit_softmax_and_change_nothing(pack, ours, theirs, phrases) -> None:
    own, other = (recorded(pack, backbone, phrases) for backbone in (ours, theirs))
    assert own.sites == other.sites == ("layers.1.attention",)
    assert torch.equal(own.plain, own.found)
    # Z-Image's words come first here, and its rows run by the length of their texts.
    groups = [one for one, _ in own.parts[:2]]
    assert [one.index for one in groups] == [(0, 2), (1,)]
    lengths = own.told.extra["length"].tolist()
    assert own.maps.keys == other.maps.keys == tuple((row, "ada") for row in range(3))
    for one in groups:
        length = lengths[one.index[0]]
        start = -(-length // 32) * 32
        assert one.size == (4, 6) and one.words == slice(0, length)
        assert one.cells == slice(start, start + 24) and one.key.shape[2] == start + 32
        shares = (one.query @ one.key.mT / 8).softmax(-1).mean(1)[:, one.cells]
        for place, row in enumerate(one.index):
            expected = shares[place][:, own.told.positions[row]["ada"]].sum(-1)
            torch.testing.assert_close(own.maps.values[row].flatten(), expected)
    near(own.maps.values, other.maps.values)
    near(own.spread, other.spread)


def test_a_bias_is_an_explicit_mask(pack, ours, theirs, phrases) -> None:
    check_bias(pack, ours, theirs, phrases, width=64)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_same_losses_and_gradients_as_in_diffusers(
    pack, ours, theirs, phrases, checkpointing
) -> None:
    parts, fused = ours.parts_of(ours.unet), lora_of(pack, ours, 0.1)
    assert len(fused) == 2 * 5  # qkv, out, w1, w2, w3
    blocks = 4 * checkpointing
    own = losses_and_gradients(pack, ours, fused, phrases, blocks)
    other = losses_and_gradients(pack, theirs, apart(pack, ours, fused), phrases, blocks)
    assert own.losses == pytest.approx(other.losses, rel=1e-3)
    for name, (down, up) in own.lora.items():
        near(down, sum(other.lora[part.name][0] for part in parts[name]), 2e-3)
        for part in parts[name]:
            near(up[part.rows or slice(None)], other.lora[part.name][1], 2e-3)


# -- stock nodes ------------------------------------------------------------------------------


@pytest.fixture
def adapter(pack, ours) -> Any:
    return adapter_of(pack, ours)


@pytest.fixture
def file(pack, make, adapter):
    with saved(pack, make, adapter, "zimage-test") as path:
        yield path


def test_stock_loaders_draw_what_apply_adapter_draws(
    pack, tiny_zimage, adapter, file, ksample, caplog
) -> None:
    text = "a photo of ada lovel woman"
    check_stock_loaders(pack, tiny_zimage, adapter, file, text, ksample, caplog)


def test_encode_prompt_marks_the_phrases_columns(pack, ours, tiny_zimage, adapter) -> None:
    """Between the template's words."""
    check_columns(pack, ours, "qwen3_4b", tiny_zimage.clip, adapter)


def test_the_file_does_the_same_in_diffusers(pack, ours, theirs, phrases, adapter, file) -> None:
    """Here it is merged into the fused layers."""
    check_file_in_diffusers(pack, ours, theirs, phrases, adapter, file)


def test_other_models_are_refused_in_words(pack, make, tiny, tiny_zimage, adapter) -> None:
    errors, backbone = pack("magicapture.errors"), pack.comfy.ComfyBackbone
    refused = errors.UnsupportedModelError
    with pytest.raises(refused, match="'clip' holds clip_l, and Z-Image at 'model' reads qwen3_4b"):
        backbone(tiny_zimage.model, tiny.clip, tiny.vae)
    with pytest.raises(refused, match="'clip' holds qwen3_4b"):
        backbone(tiny.model, tiny_zimage.clip, tiny.vae)
    klein = tiny_zimage.clip.clone()
    klein.tokenizer = importlib.import_module("comfy.text_encoders.flux").KleinTokenizer()
    with pytest.raises(refused, match="another model than Z-Image reads them"):
        backbone(tiny_zimage.model, klein, tiny.vae)
    with pytest.raises(refused, match="48 wide and the model at 'model' expects 64"):
        backbone(make.zimage(cap_feat_dim=64), tiny_zimage.clip, tiny.vae)
    with pytest.raises(refused, match="8 input channels"):
        backbone(make.zimage(in_channels=8), tiny_zimage.clip, tiny.vae)
    with pytest.raises(refused, match="TinyZImage"):  # Omni
        backbone(make.zimage(siglip_feat_dim=8), tiny_zimage.clip, tiny.vae)
    with pytest.raises(errors.InputError, match="for Z-Image and the base model is"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)


def test_lumina_is_refused_and_what_z_image_needs_is_said(pack, make, tiny) -> None:
    """Also by a ComfyUI that has no Z-Image."""
    lumina = make.zimage("Lumina2")
    with pytest.raises(
        pack("magicapture.errors").UnsupportedModelError,
        match=r"from ComfyUI 0\.33\.0 on, Z-Image",
    ):
        pack.comfy.ComfyBackbone(lumina, tiny.clip, tiny.vae)


def test_a_training_moves_the_lora_and_leaves_the_model_as_it_was(pack, ours) -> None:
    """Two phases of phrases, every loss; the tokens' vectors that were asked for are none."""
    done = train(pack, ours)
    assert {"source", "style", "composed", "attention"} <= done.losses
    assert sum("learns no vectors" in text for text in done.told) == 2
    assert done.adapter.family == "zimage" and done.adapter.tokens == {}
    assert {key.partition(".")[0] for key in done.adapter.lora} == {"transformer"}
    assert all(of.up.any() for of in done.adapter.lora.values())


# -- refocusing while a stock sampler draws --------------------------------------------------------


@pytest.mark.parametrize("how", [{"bias": 30.0}, {"bias": 0.0, "gradient": 0.05, "end": 1.0}])
def test_a_stock_sampler_holds_the_phrase_to_its_region(
    pack, tiny_zimage, adapter, monkeypatch, how
) -> None:
    check_held(pack, tiny_zimage, adapter, "layers.1.attention", how, monkeypatch)
