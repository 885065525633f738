"""Flux.1 against diffusers' pipeline: what it is told, its files, its gradients, its pictures."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import load_file, save_file

from magicapture.attention import captured, cross_attentions, select
from magicapture.backbones import load_backbone
from magicapture.errors import InputError, StorageError, UnsupportedModelError
from magicapture.refocusing import Focus, foci
from magicapture.sampling import SamplingSettings, sample, sample_latents
from magicapture.tokens import Concept, Prompt, TokenVectors

NOTHING = TokenVectors({})
SHIFTS = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


@pytest.fixture
def pipeline(flux_backbone) -> FluxPipeline:
    texts, words = flux_backbone.text_encoders, flux_backbone.tokenizers
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTS),
        vae=flux_backbone.vae,
        text_encoder=texts["clip_l"],
        tokenizer=words["clip_l"],
        text_encoder_2=texts["t5xxl"],
        tokenizer_2=words["t5xxl"],
        transformer=flux_backbone.unet,
    )


@pytest.fixture
def vectors() -> TokenVectors:
    """One token of two vectors in both encoders."""
    return TokenVectors({"ada": {"clip_l": torch.randn(2, 32), "t5xxl": torch.randn(2, 48)}})


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(flux_backbone, pipeline) -> None:
    texts = ["a photo of a woman in the style", "a person, of a woman."]
    found = flux_backbone.encode_prompts([Prompt(text) for text in texts], NOTHING)
    context, pooled, _ = pipeline.encode_prompt(texts, None, max_sequence_length=256)
    assert context.shape == (2, 256, 48) and pooled.shape == (2, 32)
    torch.testing.assert_close(found.context, context)
    torch.testing.assert_close(found.extra["pooled"], pooled)


@torch.no_grad()
def test_the_transformer_is_told_what_the_pipeline_tells_it(flux_backbone, pipeline) -> None:
    """The distilled guidance of drawing is the pipeline's; in training it is 1."""
    told = flux_backbone.encode_prompts([Prompt("a photo")] * 2, NOTHING)
    noisy, levels = torch.randn(2, 4, 12, 16), torch.tensor([0.3, 0.8])
    seen = []
    hook = flux_backbone.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    flux_backbone.predict(noisy, levels, told)
    pipeline("a photo", height=96, width=128, num_inference_steps=1, guidance_scale=2.5,
             max_sequence_length=256, output_type="latent")  # fmt: skip
    settings = SamplingSettings("ddim", steps=2, guidance=2.5, width=128, height=96)
    sample_latents(flux_backbone, "a photo", NOTHING, settings)
    hook.remove()
    ours, theirs, drawn = seen[0], seen[1], seen[2]
    assert ours["guidance"].tolist() == [1, 1]
    assert theirs["guidance"].tolist() == drawn["guidance"].tolist() == [2.5]
    assert torch.equal(ours["img_ids"], theirs["img_ids"].float())
    assert torch.equal(ours["txt_ids"], theirs["txt_ids"].float())
    torch.testing.assert_close(ours["pooled_projections"][:1], theirs["pooled_projections"])
    torch.testing.assert_close(ours["encoder_hidden_states"][:1], theirs["encoder_hidden_states"])
    packed = FluxPipeline._pack_latents(noisy, 2, 4, 12, 16)
    assert torch.equal(ours["hidden_states"], packed)


@torch.no_grad()
def test_vectors_stand_in_both_encoders(flux_backbone, vectors) -> None:
    """The columns are those of T5, which has no start: CLIP's words are no columns here."""
    prompts = [Prompt("a photo of <ada> woman"), Prompt("a woman")]
    plain = flux_backbone.encode_prompts(prompts, NOTHING)
    found = flux_backbone.encode_prompts(prompts, vectors)
    assert found.positions == [{"ada": [3, 4]}, {}]
    concept = Concept("ada", "subject", "woman")
    assert foci(flux_backbone, prompts, found, vectors, [concept]) == [
        (Focus("ada", "subject", (3, 4), word=(5,)),),
        (),
    ]
    seen = []
    first = flux_backbone.text_encoders["t5xxl"].encoder.block[0]
    hook = first.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    flux_backbone.encode_prompts(prompts, vectors)
    hook.remove()
    torch.testing.assert_close(seen[0][0, 3:5], vectors.get("ada", "t5xxl"))
    assert not torch.allclose(found.extra["pooled"][0], plain.extra["pooled"][0])
    assert torch.equal(found.extra["pooled"][1], plain.extra["pooled"][1])


@pytest.mark.parametrize("key", ["clip_l", "t5xxl"])
def test_the_gradient_at_a_vector_is_that_of_central_differences(flux_backbone, key) -> None:
    double = flux_backbone
    for module in double.modules.values():
        module.double().requires_grad_(False)
    vectors = TokenVectors({"ada": {"clip_l": torch.randn(1, 32), "t5xxl": torch.randn(1, 48)}})
    vectors.double()
    noisy = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    level, weights = torch.tensor([0.6], dtype=torch.float64), torch.randn_like(noisy)

    def loss() -> torch.Tensor:
        told = double.encode_prompts([Prompt("a photo of <ada> woman")], vectors)
        return (double.predict(noisy, level, told) * weights).sum()

    vector = vectors.get("ada", key)
    (found,) = torch.autograd.grad(loss(), vector)
    step, direction = 3e-3, torch.randn_like(vector)  # T5's norms round to float32
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            vector.add_(sign * step * direction)
            ends.append(loss())
            vector.sub_(sign * step * direction)
    expected = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), expected, rtol=1e-3, atol=1e-6)


def test_a_folder_in_pieces(pipeline, flux_backbone, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    assert len(list((tmp_path / "text_encoder_2").glob("*.safetensors"))) > 1
    loaded = load_backbone(tmp_path)
    assert loaded.family == "flux1" and set(loaded.text_encoders) == {"clip_l", "t5xxl"}
    assert loaded.schedule.prediction == "flow"
    assert loaded.schedule.levels.shift == pytest.approx(2.71828**1.15, rel=1e-4)  # type: ignore[attr-defined]
    for key, module in loaded.modules.items():
        weights = flux_backbone.modules[key].state_dict()
        for name, values in module.state_dict().items():
            assert torch.equal(values, weights[name]), (key, name)
    prompts = [Prompt("a photo of <ada> woman")]
    vectors = TokenVectors({"ada": {"clip_l": torch.ones(1, 32), "t5xxl": torch.ones(1, 48)}})
    noisy, level = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        own, other = (b.encode_prompts(prompts, vectors) for b in (loaded, flux_backbone))
        assert torch.equal(own.context, other.context)
        torch.testing.assert_close(
            loaded.predict(noisy, level, own), flux_backbone.predict(noisy, level, other)
        )


def test_pieces_stay_in_their_folder(pipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    index = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    listed = json.loads(index.read_text())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("../../other.safetensors", "other.bin"):
        first, *_ = listed["weight_map"]
        index.write_text(json.dumps({"weight_map": {**listed["weight_map"], first: name}}))
        with pytest.raises((InputError, StorageError)):
            load_backbone(tmp_path / "model")
    index.write_text(json.dumps(listed))
    next((tmp_path / "model" / "transformer").glob("*00002*")).unlink()
    with pytest.raises(StorageError, match="00002"):
        load_backbone(tmp_path / "model")


def test_the_table_of_words_may_have_either_name(pipeline, flux_backbone, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "text_encoder_2" / "model.safetensors"
    tensors = load_file(path)
    table = tensors.pop("shared.weight", None)
    tensors["encoder.embed_tokens.weight"] = (
        tensors["encoder.embed_tokens.weight"] if table is None else table
    )
    save_file(tensors, path)
    t5 = load_backbone(tmp_path).text_encoders["t5xxl"]
    expected = flux_backbone.text_encoders["t5xxl"]
    ids = torch.tensor([[4, 5, 1]])
    torch.testing.assert_close(t5(ids).last_hidden_state, expected(ids).last_hidden_state)


def test_a_flux_for_control_or_inpainting_is_refused(pipeline, tiny, tmp_path) -> None:
    pipeline.transformer = tiny.flux(in_channels=32, out_channels=16)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="inpainting or control"):
        load_backbone(tmp_path)


def test_a_negative_prompt_is_refused_and_sizes_are_whole_places(flux_backbone) -> None:
    few = {"sampler": "ddim", "steps": 2, "width": 64}
    with pytest.raises(InputError, match="no negative prompt"):
        sample(flux_backbone, "a photo", settings=SamplingSettings(**few, negative="blur"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="multiples of 16"):
        sample(flux_backbone, "a photo", settings=SamplingSettings(**few, height=72))  # type: ignore[arg-type]
    image = sample(flux_backbone, "a photo", settings=SamplingSettings(**few, height=80))  # type: ignore[arg-type]
    assert image.shape == (1, 3, 80, 64)


def test_maps_are_of_the_words_that_t5_reads(flux_backbone, vectors) -> None:
    with torch.no_grad():
        told = flux_backbone.encode_prompts([Prompt("a photo of <ada> woman")], vectors)
        with captured(flux_backbone.attention) as capture:
            with capture.recording():
                flux_backbone.predict(torch.randn(1, 4, 8, 12), torch.tensor([0.5]), told)
            seen = {site: capture.seen(site) for site in select(flux_backbone.unet)}
            maps = capture.maps(told.positions, (8, 12))
    assert [one.layer for one in maps] == list(seen)
    assert len(cross_attentions(flux_backbone.unet)) == 4
    for one in maps:
        of = seen[one.layer]
        assert of.words == slice(0, 256)
        logits = of.query[:, :, 256:] @ of.key.mT / 4  # heads are 16 wide
        expected = logits.softmax(-1).mean(1)[..., 3:5].sum(-1)
        torch.testing.assert_close(one.values.flatten(1), expected)


def test_the_class_word_is_found_in_the_columns_of_t5(flux_backbone, vectors) -> None:
    """T5 has no start: a photo of <ada> woman is three words, two vectors and a word."""
    prompt, ada = Prompt("a photo of <ada> woman"), Concept("ada", "subject", "woman", 2)
    with torch.no_grad():
        told = flux_backbone.encode_prompts([prompt], vectors)
    assert foci(flux_backbone, [prompt], told, vectors, [ada]) == [
        (Focus("ada", "subject", (3, 4), (5,)),)
    ]
