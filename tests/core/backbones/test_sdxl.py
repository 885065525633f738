"""Stable Diffusion XL against diffusers' pipeline: what it is told, its files, its gradients."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from magicapture.attention import cross_attentions, select
from magicapture.backbones import load_backbone
from magicapture.backbones.support import BETAS
from magicapture.errors import UnsupportedModelError
from magicapture.magicface import Reference, ReferenceGuide
from magicapture.refocusing import Focus, PromptRefocuser, RefocusGuidance, foci
from magicapture.sampling import SamplingSettings, initial_noise, sample_latents
from magicapture.tokens import Concept, Prompt, TokenVectors

NOTHING = TokenVectors({})


@pytest.fixture
def pipeline(xl_backbone, tokenizer) -> StableDiffusionXLPipeline:
    second = deepcopy(tokenizer)
    second.pad_token = "!"
    return StableDiffusionXLPipeline(
        vae=xl_backbone.vae,
        text_encoder=xl_backbone.text_encoders["clip_l"],
        text_encoder_2=xl_backbone.text_encoders["clip_g"],
        tokenizer=tokenizer,
        tokenizer_2=second,
        unet=xl_backbone.unet,
        scheduler=DDIMScheduler(**BETAS),
    )


@pytest.fixture
def vectors() -> TokenVectors:
    """One token of two vectors in both encoders."""
    return TokenVectors({"ada": {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}})


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(xl_backbone, pipeline) -> None:
    texts = ["a photo of a woman in the rain", "a hat"]
    found = xl_backbone.encode_prompts([Prompt(text) for text in texts], NOTHING)
    context, _, pooled, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
    assert context.shape == (2, 77, 80) and pooled.shape == (2, 24)
    torch.testing.assert_close(found.context, context)
    torch.testing.assert_close(found.extra["pooled"], pooled)
    assert torch.equal(found[1:].extra["pooled"], found.extra["pooled"][1:])


@torch.no_grad()
def test_the_unet_is_told_what_the_pipeline_tells_it(xl_backbone, pipeline) -> None:
    conditioning = xl_backbone.encode_prompts([Prompt("a photo")] * 2, NOTHING)
    noisy, t = torch.randn(2, 4, 12, 16), torch.tensor([30, 700])
    size = (96, 128)  # of the picture, 8 pixels a cell
    told = pipeline._get_add_time_ids(
        size, (0, 0), size, dtype=torch.float32, text_encoder_projection_dim=24
    )
    expected = pipeline.unet(
        noisy,
        t,
        encoder_hidden_states=conditioning.context,
        added_cond_kwargs={
            "text_embeds": conditioning.extra["pooled"],
            "time_ids": told.repeat(2, 1),
        },
    ).sample
    assert torch.equal(xl_backbone.predict(noisy, t, conditioning), expected)


@torch.no_grad()
def test_vectors_stand_in_the_same_columns_of_both_encoders(xl_backbone, vectors) -> None:
    """As the rows of longer embedding tables; the pooled output stays that of the end."""
    text = Prompt("a photo of <ada> woman")
    found = xl_backbone.encode_prompts([text], vectors)
    assert found.positions == [{"ada": [4, 5]}]
    words = xl_backbone.word_ids("clip_l", "a photo of")
    encoded = {}
    for key, encoder in xl_backbone.text_encoders.items():
        longer = deepcopy(encoder)
        embedding = longer.get_input_embeddings()
        own = [len(embedding.weight), len(embedding.weight) + 1]
        rows = torch.cat([embedding.weight, vectors.get("ada", key)])
        embedding.weight = torch.nn.Parameter(rows)
        end = 0 if key == "clip_g" else 49407
        ids = [49406, *words, *own, *xl_backbone.word_ids(key, "woman"), 49407]
        ids += [end] * (77 - len(ids))
        encoded[key] = longer(torch.tensor([ids]), output_hidden_states=True)
    context = torch.cat([of.hidden_states[-2] for of in encoded.values()], -1)
    torch.testing.assert_close(found.context, context)
    torch.testing.assert_close(found.extra["pooled"], encoded["clip_g"].text_embeds)


@pytest.mark.parametrize("key", ["clip_l", "clip_g"])
def test_the_gradient_at_a_vector_is_that_of_central_differences(xl_backbone, key) -> None:
    for module in xl_backbone.modules.values():
        module.double().requires_grad_(False)
    vectors = TokenVectors({"ada": {"clip_l": torch.randn(1, 32), "clip_g": torch.randn(1, 48)}})
    vectors.double()
    noisy, t = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.tensor([400])
    weights = torch.randn_like(noisy)

    def loss() -> Tensor:
        conditioning = xl_backbone.encode_prompts([Prompt("a photo of <ada>")], vectors)
        return (xl_backbone.predict(noisy, t, conditioning) * weights).sum()

    parameter = vectors.get("ada", key)
    loss().backward()
    direction, step = torch.randn_like(parameter), 1e-5
    with torch.no_grad():
        parameter += step * direction
        above = loss()
        parameter -= 2 * step * direction
        below = loss()
    expected = (above - below) / (2 * step)
    torch.testing.assert_close((parameter.grad * direction).sum(), expected, rtol=1e-6, atol=1e-9)
    assert expected.abs() > 1e-4


# -- files ------------------------------------------------------------------------------------


def assert_same(found, pipeline) -> None:
    """Every weight, and so every output."""
    assert found.family == "sdxl"
    pairs = {
        found.unet: pipeline.unet,
        found.vae: pipeline.vae,
        found.text_encoders["clip_l"]: pipeline.text_encoder,
        found.text_encoders["clip_g"]: pipeline.text_encoder_2,
    }
    for module, original in pairs.items():
        own, expected = module.state_dict(), original.state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_a_folder(pipeline, xl_backbone, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    found = load_backbone(tmp_path)
    assert_same(found, pipeline)
    prompts = [Prompt("a photo of a woman")]
    expected = xl_backbone.encode_prompts(prompts, NOTHING)
    got = found.encode_prompts(prompts, NOTHING)
    assert torch.equal(got.context, expected.context)
    assert torch.equal(got.extra["pooled"], expected.extra["pooled"])


def test_a_vae_is_kept_out_of_float16(pipeline, xl_backbone, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    found = load_backbone(tmp_path, dtype=torch.float16)
    assert found.dtype == torch.float16
    assert next(found.vae.parameters()).dtype == torch.float32
    with xl_backbone.training(torch.float16):
        assert xl_backbone.dtype == torch.float16
        assert {p.dtype for p in xl_backbone.vae.parameters()} == {torch.float32}
    assert xl_backbone.dtype == torch.float32


@pytest.fixture
def single(ldm_layout, tokenizer):
    """The weights of a single file, and the pipeline that they are of."""
    from transformers import CLIPTextConfig, CLIPTextModel

    def text(kind, width: int, **changes):
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=96,
            num_hidden_layers=12 if kind is CLIPTextModel else 23,
            num_attention_heads=1,
            bos_token_id=49406,
            eos_token_id=49407,
            **{"hidden_act": "quick_gelu", **changes},
        )
        return kind(config).eval()

    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(1, 1, 2),
        use_linear_projection=True,
        cross_attention_dim=32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    first = text(CLIPTextModel, 32)
    second = text(
        CLIPTextModelWithProjection, 48, projection_dim=24, hidden_act="gelu", pad_token_id=0
    )
    scheduler = DDIMScheduler(**BETAS)
    pipeline = StableDiffusionXLPipeline(
        vae, first, second, tokenizer, deepcopy(tokenizer), unet, scheduler
    )
    return ldm_layout(unet, vae, first, second), pipeline


def test_a_single_file(single, tmp_path) -> None:
    weights, pipeline = single
    save_file(weights, tmp_path / "xl.safetensors")
    found = load_backbone(tmp_path / "xl.safetensors")
    assert_same(found, pipeline)
    assert found.schedule.prediction == "epsilon"
    assert found.vae.config.scaling_factor == 0.13025
    with torch.no_grad():
        got = found.encode_prompts([Prompt("a photo of a woman")], NOTHING)
        pipeline.tokenizer_2.pad_token = "!"
        context, _, pooled, _ = pipeline.encode_prompt(
            "a photo of a woman", do_classifier_free_guidance=False
        )
    torch.testing.assert_close(got.context, context)
    torch.testing.assert_close(got.extra["pooled"], pooled)


def test_a_file_that_says_v_and_zero_terminal_snr(single, tmp_path) -> None:
    told = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**single[0], **told}, tmp_path / "xl.safetensors")
    schedule = load_backbone(tmp_path / "xl.safetensors").schedule
    assert schedule.prediction == "v_prediction"
    reference = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(schedule.levels.alphas_cumprod[:-1], reference[:-1])
    assert schedule.levels.alphas_cumprod[-1] < 1e-6


def test_what_is_no_base_model_is_refused_by_name(single, pipeline, tmp_path) -> None:
    weights = single[0]
    second = "conditioner.embedders.1.model."
    refiner = {
        name.replace(second, "conditioner.embedders.0.model."): value
        for name, value in weights.items()
        if not name.startswith("conditioner.embedders.0.")
    }
    inpainting = dict(weights)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    inpainting[first] = torch.zeros(32, 9, 3, 3)
    edm = {**weights, "edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}
    for changed, kind in ((refiner, "refiner"), (inpainting, "inpainting"), (edm, "EDM")):
        save_file(changed, tmp_path / "other.safetensors")
        with pytest.raises(UnsupportedModelError, match=f"{kind}.*Diffusion 1.x, 2.x and XL"):
            load_backbone(tmp_path / "other.safetensors")


# -- drawing ----------------------------------------------------------------------------------

SAMPLING = SamplingSettings(sampler="ddim", steps=3, guidance=4.0, width=128, height=128)


def test_pictures_are_1024_px_where_nothing_else_is_asked(xl_backbone) -> None:
    seeds = [torch.Generator()]
    assert initial_noise(xl_backbone, seeds, SamplingSettings()).shape == (1, 4, 128, 128)


def test_references_are_seen(xl_backbone) -> None:
    """In the self-attention of every block of both levels of the decoder."""
    text = "a photo of a man"
    image = torch.rand(3, 64, 64)
    reference = Reference(image, None, ("man",), text, 3.0)
    guide = ReferenceGuide(xl_backbone, [reference], text, None, side=64)
    plain = sample_latents(xl_backbone, text, None, SAMPLING)
    changed = sample_latents(xl_backbone, text, None, SAMPLING, guide=guide)
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(sample_latents(xl_backbone, text, None, SAMPLING), plain)
    assert guide.session.seen is not None


def test_tokens_are_held_to_their_region(xl_backbone, vectors) -> None:
    text, concept = "a photo of <ada> woman", Concept("ada", "subject", "woman", vectors=2)
    prompts = [Prompt(text)]
    conditioning = xl_backbone.encode_prompts(prompts, vectors)
    rows = foci(xl_backbone, prompts, conditioning, vectors, [concept])
    assert rows == [(Focus("ada", "subject", (4, 5), (6,)),)]
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = 1

    def outside(guide: PromptRefocuser | None) -> float:
        shares: list[float] = []

        def watching(attention, run):
            scores = attention.scores()[-1][:, [4, 5]].sum(-1).unflatten(0, attention.size)
            inside = F.interpolate(mask, attention.size, mode="area")[0, 0]
            shares.append(float((scores * (1 - inside)).sum() / scores.sum()))
            return run(attention)

        tapped = xl_backbone.attention.tapped(watching, cross_attentions(xl_backbone.unet))
        with tapped:  # set first, so it sees what refocusing made of the layer
            sample_latents(xl_backbone, text, vectors, SAMPLING, guide=guide)
        return sum(shares) / len(shares)

    free = outside(None)
    settings = RefocusGuidance(bias=6.0)
    held = outside(PromptRefocuser(xl_backbone, rows, settings, mask))
    assert held < 0.1 * free
    finding = PromptRefocuser(xl_backbone, rows, settings)
    sample_latents(xl_backbone, text, vectors, SAMPLING, guide=finding)
    assert len(finding.seen) == 3 and finding.seen[0][0].shape == (16, 16)


def test_one_layer_of_a_stack_is_looked_at_and_all_are_held(xl_backbone) -> None:
    unet = xl_backbone.unet
    assert len(cross_attentions(unet)) == 15
    looked = [name.split(".transformer_blocks.") for name in select(unet, middle=True)]
    assert len({stack for stack, _ in looked}) == len(looked) == 7
    assert sorted(layer[0] for _, layer in looked) == ["0", "0", "0", "2", "2", "2", "2"]
