"""ComfyUI's models through the backbone equal what stock nodes make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.nodes._families import seeded

pytestmark = pytest.mark.usefixtures("executor")

TIMESTEPS = torch.tensor([3, 500, 999])


def token_vectors(pack, **counts: int):
    with torch.inference_mode(False):
        return pack("magicapture.tokens").TokenVectors(
            {
                name: {
                    "clip_l": 0.1 * seeded(n, 32, seed=i),
                    "clip_g": 0.1 * seeded(n, 48, seed=10 + i),
                }
                for i, (name, n) in enumerate(counts.items())
            }
        )


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def either(request, tiny, tiny_sd2, tiny_xl):
    return {"sd1": tiny, "sd2": tiny_sd2, "sdxl": tiny_xl}[request.param]


# -- prompts ----------------------------------------------------------------------------------


def stock_encoding(clip, text: str) -> list[Any]:
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0][0]


@pytest.mark.parametrize("skip", [None, -1, -2, -3])
def test_prompts_equal_clip_text_encode(pack, make, either, skip):
    """With `embedding:name` read from files as anywhere in ComfyUI, at every clip skip."""
    import nodes

    vectors = token_vectors(pack, ada=1, film=3)
    for name, of in vectors.tensors().items():
        values = of if hasattr(either.clip.tokenizer, "clip_g") else {"emb_params": of["clip_l"]}
        save_file(values, make.embeddings / f"{name}.safetensors")
    clip = either.clip
    if skip is not None:
        clip = nodes.CLIPSetLastLayer().set_last_layer(clip, skip)[0]
    backbone = pack.comfy.ComfyBackbone(either.model, clip, either.vae)
    texts = [
        "a photo of <ada> person in the <film> style",
        "<film>",
        "no token here, only words",
        "a <ada> and again a <ada>, walking",
    ]
    prompts = [pack("magicapture.tokens").Prompt(text) for text in texts]
    with backbone.training(None):
        together = backbone.encode_prompts(prompts, vectors)
        single = [backbone.encode_prompts([prompt], vectors) for prompt in prompts]
    assert together.context.dtype == torch.float32
    for row, text in enumerate(texts):
        stock = text.replace("<", "embedding:").replace(">", " ")
        expected, told = stock_encoding(clip, stock)
        assert torch.equal(single[row].context, expected)
        torch.testing.assert_close(together.context[row : row + 1], expected)
        if backbone.family == "sdxl":
            assert torch.equal(single[row].extra["pooled"], told["pooled_output"])
        else:
            assert single[row].extra == {}


def test_prompts_say_where_the_tokens_are(pack, either):
    vectors = token_vectors(pack, ada=2)
    backbone = pack.comfy.ComfyBackbone(either.model, either.clip, either.vae)
    prompt = pack("magicapture.tokens").Prompt("a photo of <ada>")
    with backbone.training(None):
        before = backbone.encode_prompts([prompt], vectors)
        with torch.no_grad():
            vectors.get("ada", "clip_l")[1] += 1
        after = backbone.encode_prompts([prompt], vectors)
    assert before.positions == [{"ada": [4, 5]}]  # behind start, a, photo, of
    changed = (before.context != after.context).any(dim=-1)[0]
    assert changed.nonzero()[0] == 5, "attention is causal: nothing before the vector changes"


def test_a_phrase_is_encoded_as_its_words(pack, either):
    """As CLIPTextEncode has them, in both of XL's text encoders."""
    tokens = pack("magicapture.tokens")
    phrases = {"ada": tokens.Phrase("ada lovel", "woman")}
    backbone = pack.comfy.ComfyBackbone(either.model, either.clip, either.vae)
    prompt = tokens.Prompt("a photo of <ada> woman by the sea")
    with backbone.training(None):
        found = backbone.encode_prompts([prompt], tokens.TokenVectors({}, phrases))
    expected, told = stock_encoding(either.clip, "a photo of ada lovel woman by the sea")
    assert torch.equal(found.context, expected)
    if backbone.family == "sdxl":
        assert torch.equal(found.extra["pooled"], told["pooled_output"])
    words = 4 + len(backbone.word_ids("clip_l", "ada lovel"))  # behind start, a, photo, of
    assert found.positions == [{"ada": [*range(4, words + 1)]}]


def test_words_have_the_ids_and_vectors_of_the_clip(pack, either):
    backbone = pack.comfy.ComfyBackbone(either.model, either.clip, either.vae)
    assert backbone.word_ids("clip_l", "woman") == [2308]
    assert backbone.word_ids("clip_l", "") == []
    table = backbone.text_encoders["clip_l"].get_input_embeddings().weight
    vectors = backbone.word_vectors("clip_l", "a woman")
    assert torch.equal(vectors, table[[320, 2308]])
    assert not vectors.is_inference()


# -- UNet and schedule ------------------------------------------------------------------------


def test_predictions_equal_what_sampling_denoises_to(pack, either):
    """x0 by the backbone's schedule is what ComfyUI's samplers get for the same latents."""
    backbone = pack.comfy.ComfyBackbone(either.model, either.clip, either.vae)
    kind = "v_prediction" if backbone.family == "sd2" else "epsilon"
    assert backbone.schedule.prediction == kind
    noisy = seeded(3, 4, 8, 8)
    vectors = token_vectors(pack, ada=1)
    prompts = [pack("magicapture.tokens").Prompt("a photo of <ada>")] * 3
    with backbone.training(None), torch.no_grad():
        conditioning = backbone.encode_prompts(prompts, vectors)
        prediction = backbone.predict(noisy, TIMESTEPS, conditioning)
        x0 = backbone.schedule.to_x0(prediction, noisy, TIMESTEPS)
    model = either.model.model
    sigmas = model.model_sampling.sigmas[TIMESTEPS]
    scaled = noisy * (sigmas**2 + 1).sqrt().view(-1, 1, 1, 1)
    told = {}
    if backbone.family == "sdxl":
        pooled = conditioning.extra["pooled"]
        conds = model.extra_conds(
            pooled_output=pooled, width=64, height=64, noise=noisy, device=noisy.device
        )
        told["y"] = conds["y"].cond
    expected = model.apply_model(scaled, sigmas, None, conditioning.context, **told)
    torch.testing.assert_close(x0, expected, rtol=1e-3, atol=1e-3)


def test_the_schedule_is_stable_diffusions(pack, tiny):
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0).float()
    torch.testing.assert_close(
        backbone.schedule.levels.alphas_cumprod, expected, rtol=1e-4, atol=1e-6
    )
    assert not backbone.schedule.levels.alphas_cumprod.is_inference()
    assert backbone.schedule.levels.limit(0.383) == 500


def test_a_sampling_node_changes_the_schedule(pack, tiny):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    node = ModelSamplingDiscrete()
    model = node.patch(tiny.model, "v_prediction", False)[0]
    backbone = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
    assert backbone.schedule.prediction == "v_prediction"
    terminal = node.patch(tiny.model, "eps", True)[0]
    schedule = pack.comfy.ComfyBackbone(terminal, tiny.clip, tiny.vae).schedule
    assert schedule.prediction == "epsilon"
    assert schedule.levels.alphas_cumprod[-1] < 1e-6
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match="X0"):
        pack.comfy.ComfyBackbone(node.patch(tiny.model, "x0", False)[0], tiny.clip, tiny.vae)


def test_what_changes_sampling_is_left_out_with_a_warning(pack, tiny, caplog):
    from comfy_extras.nodes_freelunch import FreeU_V2

    pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    assert "leaves out" not in caplog.text
    model = (
        FreeU_V2.execute(tiny.model, 1.3, 1.4, 0.9, 0.2)
        if hasattr(FreeU_V2, "execute")
        else (FreeU_V2().patch(tiny.model, 1.3, 1.4, 0.9, 0.2))
    )
    pack.comfy.ComfyBackbone(model[0], tiny.clip, tiny.vae)
    assert "leaves out what changes sampling: output_block_patch" in caplog.text


# -- VAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["taesd", "kl"])
def test_encoding_and_decoding_equal_the_vae_nodes(pack, make, tiny, kind):
    import nodes

    vae = getattr(make, kind)()
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, vae)
    assert backbone.downscale == 8
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    pixels = pack.comfy.images_to_socket(images)
    with backbone.training(None):
        latents = backbone.encode(images)
        decoded = backbone.decode(latents)
    assert not latents.requires_grad and not latents.is_inference()
    scale = 0.18215
    expected = nodes.VAEEncode().encode(vae, pixels)[0]["samples"] * scale
    assert latents.shape == (2, 4, 8, 6)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
    shown = nodes.VAEDecode().decode(vae, {"samples": latents / scale})[0]
    torch.testing.assert_close(pack.comfy.images_to_socket(decoded), shown, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["taesd", "kl"])
def test_decoding_has_a_gradient_also_where_it_leaves_0_to_1(pack, make, tiny, kind):
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, getattr(make, kind)())
    with backbone.training(None):
        latents = seeded(1, 4, 8, 8).requires_grad_()
        images = backbone.decode(latents)
        images.square().sum().backward()
        assert latents.grad.abs().min() > 0
        assert images.min() < 0 or images.max() > 1


def test_a_small_decoder_serves_losses_and_previews_alone(pack, make, tiny):
    full, small, latents = make.kl(), make.taesd(), seeded(1, 4, 8, 8)
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, full, decoder=small)
    only_full = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, full)
    only_small = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, small)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with only_full.training(None):
        encoded, decoded = only_full.encode(images), only_full.decode(latents)
        assert torch.equal(only_full.decode_fast(latents), decoded)
    with only_small.training(None):
        fast = only_small.decode(latents)
    with backbone.training(None):
        assert torch.equal(backbone.encode(images), encoded)
        assert torch.equal(backbone.decode(latents), decoded)
        assert torch.equal(backbone.decode_fast(latents), fast)
    assert not torch.equal(fast, decoded)


# -- names --------------------------------------------------------------------------------------


def whole(parts):
    """The one name of each layer."""
    assert all(part.rows is None for layer in parts.values() for part in layer)
    return {name: part.name for name, (part,) in parts.items()}


@pytest.mark.parametrize("linear", [False, True])
def test_the_unets_names_are_those_of_diffusers(pack, make, tiny, linear):
    """Weights moved over by name make diffusers' UNet predict the same."""
    model = make.model(use_linear_in_transformer=linear)
    backbone = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
    with torch.inference_mode(False):
        theirs = make.diffusers_unet(use_linear_projection=linear)
        names = whole(backbone.parts_of(backbone.unet))
        state = {}
        for name, value in backbone.unet.state_dict().items():
            module, _, weight = name.rpartition(".")
            state[f"{names[module]}.{weight}"] = value.clone()
        theirs.load_state_dict(state)
    noisy, context = seeded(3, 4, 8, 8), seeded(3, 77, 32, seed=1)
    with backbone.training(None), torch.no_grad():
        conditioning = pack("magicapture.backbone").Conditioning(context, positions=[{}] * 3)
        own = backbone.predict(noisy, TIMESTEPS, conditioning)
        other = theirs(noisy, TIMESTEPS, encoder_hidden_states=context).sample
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_attention_layers_have_names_too(pack, tiny):
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    names = whole(backbone.parts_of(backbone.unet))
    own = "input_blocks.1.1.transformer_blocks.0.attn2"
    theirs = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert names[own] == theirs
    assert names[f"{own}.to_q"] == f"{theirs}.to_q"
    assert names[f"{own}.to_out.0"] == f"{theirs}.to_out.0"
    assert names["middle_block.1"] == "mid_block.attentions.0"


def test_the_text_encoders_names_are_those_of_transformers(pack, either):
    backbone = pack.comfy.ComfyBackbone(either.model, either.clip, either.vae)
    encoder = backbone.text_encoders["clip_l"]
    names = whole(backbone.parts_of(encoder))
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    assert names[layer] == layer
    assert encoder.get_submodule(layer).weight.shape == (32, 32)
    text = pack("magicapture.lora").text_target_names(encoder)
    assert len(text) == 3 * 4 and set(text) <= set(names)


def test_the_text_encoders_weights_do_the_same_in_transformers(pack, tiny):
    from transformers import CLIPTextConfig, CLIPTextModel

    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    encoder = backbone.text_encoders["clip_l"]
    names = whole(backbone.parts_of(encoder))
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act="quick_gelu",
        eos_token_id=49407,
    )
    with torch.inference_mode(False):
        theirs = CLIPTextModel(config).eval()
        flat = not hasattr(theirs, "text_model")  # transformers 5 dropped a level
        state = {}
        for name, value in encoder.text_model.state_dict(prefix="text_model.").items():
            module, _, weight = name.rpartition(".")
            named = f"{names[module]}.{weight}"
            state[named.removeprefix("text_model.") if flat else named] = value.clone()
        theirs.load_state_dict(state)
    prompt = pack("magicapture.tokens").Prompt("a photo of a woman")
    with backbone.training(None), torch.no_grad():
        context = backbone.encode_prompts([prompt], token_vectors(pack, ada=1)).context
        ids = [49406, *backbone.word_ids("clip_l", prompt.text), 49407]
        ids = torch.tensor([ids + [49407] * (77 - len(ids))])
        expected = theirs(input_ids=ids).last_hidden_state
    torch.testing.assert_close(context, expected, rtol=1e-4, atol=1e-4)


# -- refusals -----------------------------------------------------------------------------------


def test_inpainting_and_other_models_are_refused_by_name(pack, make, tiny, monkeypatch):
    import comfy.supported_models

    error = pack("magicapture.errors").UnsupportedModelError
    inpainting = make.model(in_channels=9)
    with pytest.raises(
        error, match=r"'model'.*9 input channels.*Stable Diffusion 1\.x, 2\.x and XL"
    ):
        pack.comfy.ComfyBackbone(inpainting, tiny.clip, tiny.vae)
    unclip = make.model(num_classes="sequential", adm_in_channels=64)
    with pytest.raises(error, match="conditioning"):
        pack.comfy.ComfyBackbone(unclip, tiny.clip, tiny.vae)
    for name, found in (("SDXLRefiner", "SDXLRefiner, which only"), ("SSD1B", "SSD1B")):
        kind = getattr(comfy.supported_models, name)
        other = kind.__new__(kind)
        other.unet_config = {"in_channels": 4}
        monkeypatch.setattr(tiny.model.model, "model_config", other)
        with pytest.raises(error, match=f"'model' holds {found}"):
            pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)


def test_a_network_that_is_no_unet_is_refused(pack, tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.model, "diffusion_model", torch.nn.Linear(2, 2))
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match="Linear"):
        pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)


@pytest.mark.parametrize("missing", ["model", "clip", "vae"])
def test_a_part_missing_from_the_checkpoint_is_named(pack, tiny, missing):
    parts = {"model": tiny.model, "clip": tiny.clip, "vae": tiny.vae, missing: None}
    with pytest.raises(pack("magicapture.errors").InputError, match=f"'{missing}'"):
        pack.comfy.ComfyBackbone(**parts)


def test_a_checkpoint_without_vae_weights_is_named(pack, tiny):
    import comfy.sd

    empty = comfy.sd.VAE(sd={})
    with pytest.raises(pack("magicapture.errors").InputError, match="no VAE"):
        pack.comfy.ComfyBackbone(tiny.model, tiny.clip, empty)


def test_a_vae_of_another_kind_is_refused(pack, tiny, monkeypatch):
    monkeypatch.setattr(tiny.vae, "latent_channels", 16)
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match="16 latent channels"):
        pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    monkeypatch.undo()
    monkeypatch.setattr(tiny.vae, "latent_dim", 3)
    with pytest.raises(error, match="'vae'"):
        pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)


def test_a_clip_of_another_width_is_refused(pack, make, tiny):
    model = make.model(context_dim=64)
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match=r"32 wide.*64"):
        pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
