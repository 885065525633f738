"""The backbone against its parts called by hand."""

import copy

import pytest
import torch

from magicapture.backbones import DiffusersBackbone
from magicapture.errors import InputError, UnsupportedModelError
from magicapture.parts import Part
from magicapture.tokens import Prompt, TokenVectors


@pytest.fixture
def vectors():
    torch.manual_seed(5)
    return TokenVectors(
        {"ada": {"clip_l": torch.randn(2, 32)}, "ink": {"clip_l": torch.randn(1, 32)}}
    )


def encoder_of(backbone):
    return backbone.text_encoders["clip_l"]


def test_spliced_vectors_equal_a_longer_embedding_table(backbone, vectors, tokenizer):
    """Textual inversion's usual way: new rows in the table, new ids in the prompt."""
    table = copy.deepcopy(encoder_of(backbone))
    table.resize_token_embeddings(49411)
    with torch.no_grad():
        new = torch.cat([vectors.get("ada", "clip_l"), vectors.get("ink", "clip_l")])
        table.get_input_embeddings().weight[49408:] = new

    def words(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    ids = [49406, *words("a photo of"), 49408, 49409, *words("woman, in the"), 49410]
    ids += [*words("style!"), 49407]
    ids += [49407] * (77 - len(ids))
    with torch.no_grad():
        expected = table(input_ids=torch.tensor([ids])).last_hidden_state
        found = backbone.encode_prompts(
            [Prompt("a photo of <ada> woman, in the <ink> style!")], vectors
        )
    torch.testing.assert_close(found.context, expected)
    assert found.positions == [{"ada": [4, 5], "ink": [10]}]
    assert [ids[column] for column in (4, 5, 10)] == [49408, 49409, 49410]


def test_a_prompt_without_tokens_is_the_encoders_own(backbone, vectors, tokenizer):
    texts = ["a photo of a woman", ""]
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder_of(backbone)(input_ids=ids).last_hidden_state
        found = backbone.encode_prompts([Prompt(text) for text in texts], vectors).context
    torch.testing.assert_close(found, expected)


def test_gradients_reach_the_vectors_alone(backbone, vectors):
    with backbone.training(None):
        conditioning = backbone.encode_prompts([Prompt("a <ada> woman"), Prompt("a cat")], vectors)
        noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
        backbone.predict(noisy, t, conditioning).square().sum().backward()
    assert vectors.get("ada", "clip_l").grad.abs().min() > 0
    assert vectors.get("ink", "clip_l").grad is None
    for module in backbone.modules.values():
        assert all(p.grad is None for p in module.parameters())


def test_the_encoder_is_left_as_it_was(backbone, vectors):
    table = encoder_of(backbone).get_input_embeddings()
    before = table.weight.clone()
    backbone.encode_prompts([Prompt("<ada>")], vectors)
    with pytest.raises(KeyError):
        backbone.encode_prompts([Prompt("<ada>")], _WithoutVectors(vectors))
    assert not table._forward_hooks
    assert torch.equal(table.weight, before)


class _WithoutVectors(TokenVectors):
    """Fails inside the encoder."""

    def __init__(self, vectors):
        super().__init__(vectors.tensors())

    def get(self, name, encoder):
        raise KeyError(name)


def test_word_vectors_are_rows_of_the_table(backbone, tokenizer):
    ids = backbone.word_ids("clip_l", "young woman")
    assert ids == tokenizer("young woman", add_special_tokens=False).input_ids
    found = backbone.word_vectors("clip_l", "young woman")
    assert torch.equal(found, encoder_of(backbone).get_input_embeddings().weight[ids])
    assert not found.requires_grad


def test_sd2_pads_with_zeros(make_backbone, tiny):
    backbone = make_backbone(unet={"cross_attention_dim": 1024}, text_encoder={"hidden_size": 1024})
    seen = []
    encoder = encoder_of(backbone)
    encoder.get_input_embeddings().register_forward_hook(
        lambda _module, args, _output: seen.append(args[0])
    )
    backbone.encode_prompts([Prompt("a cat")], TokenVectors({}))
    assert backbone.family == "sd2"
    assert seen[0][0].tolist() == [49406, 320, 2368, 49407] + [0] * 73


def test_predict_is_the_unets_output(backbone, vectors):
    torch.manual_seed(0)
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        conditioning = backbone.encode_prompts([Prompt("a"), Prompt("b")], vectors)
        expected = backbone.unet(noisy, t, encoder_hidden_states=conditioning.context).sample
        assert torch.equal(backbone.predict(noisy, t, conditioning), expected)
        each = torch.cat(
            [backbone.predict(noisy[[b]], t[[b]], conditioning[b : b + 1]) for b in range(2)]
        )
    torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-4)


def test_autoencoder_kl_scales_its_latents(make_backbone):
    backbone = make_backbone(vae="kl")
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        mode = backbone.vae.encode(2 * images - 1).latent_dist.mode()
        latents = backbone.encode(images)
        torch.testing.assert_close(latents, 0.18215 * mode)
        expected = backbone.vae.decode(mode).sample / 2 + 0.5
        torch.testing.assert_close(backbone.decode(latents), expected)
    assert latents.shape == (2, 4, 4, 8)


def test_autoencoder_kl_shifts_its_latents(make_backbone, tiny):
    """Latents go to the UNet as (z - shift) * scale, diffusers' way for VAEs with a shift."""
    backbone = make_backbone(vae=tiny.vae("kl", scaling_factor=0.5, shift_factor=0.25))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        mode = backbone.vae.encode(2 * images - 1).latent_dist.mode()
        torch.testing.assert_close(backbone.encode(images), 0.5 * (mode - 0.25))
        expected = backbone.vae.decode(mode).sample / 2 + 0.5
        torch.testing.assert_close(backbone.decode(0.5 * (mode - 0.25)), expected)


def test_autoencoder_tiny_sees_images_from_0_to_1(backbone):
    """TAESD's own layers work on 0..1; diffusers' class maps from and to -1..1."""
    images = torch.rand(1, 3, 32, 32)
    vae = backbone.vae
    with torch.no_grad():
        latents = backbone.encode(images)
        torch.testing.assert_close(latents, vae.encoder.layers(images))
        expected = vae.decoder.layers(torch.tanh(latents / 3) * 3)
        torch.testing.assert_close(backbone.decode(latents), expected)


@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_decode_is_differentiable_and_not_clamped(make_backbone, vae):
    backbone = make_backbone(vae=vae)
    last = backbone.vae.decoder.conv_out if vae == "kl" else backbone.vae.decoder.layers[-1]
    with torch.no_grad():
        last.bias.fill_(5.0)
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    with backbone.training(None):
        image = backbone.decode(latents)
        assert image.min() > 1.5
        image.mean().backward()
    assert latents.grad.abs().sum() > 0
    assert not backbone.encode(torch.rand(1, 3, 32, 32)).requires_grad


def test_the_small_decoder_serves_losses(make_backbone, tiny):
    backbone = make_backbone(vae="kl", decoder=tiny.vae("tiny"))
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = backbone.decoder.decode(latents).sample / 2 + 0.5
        torch.testing.assert_close(backbone.decode_fast(latents), expected)
        assert not torch.allclose(backbone.decode(latents), expected, atol=1e-3)
        plain = make_backbone(vae="kl")
        assert torch.equal(plain.decode_fast(latents), plain.decode(latents))


def snapshot(backbone: DiffusersBackbone):
    parts = backbone.modules.values()
    return (
        [(t, t.data_ptr(), t.dtype, t.clone()) for m in parts for t in m.state_dict().values()],
        [p.requires_grad for m in parts for p in m.parameters()],
        [module.training for m in parts for module in m.modules()],
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_training_restores_every_bit(make_backbone, tiny, vectors, dtype, fails):
    backbone = make_backbone(vae="kl", decoder=tiny.vae("tiny"))
    backbone.unet.train()
    backbone.unet.mid_block.eval()
    backbone.unet.conv_in.requires_grad_(False)
    tensors, flags, modes = snapshot(backbone)
    try:
        with backbone.training(dtype):
            for module in backbone.modules.values():
                assert not any(m.training for m in module.modules())
                assert not any(p.requires_grad for p in module.parameters())
                assert {p.dtype for p in module.parameters()} == {dtype or torch.float32}
            assert backbone.dtype == (dtype or torch.float32)
            conditioning = backbone.encode_prompts([Prompt("<ada>")], vectors)
            noisy = backbone.encode(torch.rand(1, 3, 64, 64))
            prediction = backbone.predict(noisy, torch.tensor([9]), conditioning)
            assert noisy.dtype == prediction.dtype == torch.float32
            (prediction.sum() + backbone.decode_fast(prediction).sum()).backward()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    after, *state = snapshot(backbone)
    assert state == [flags, modes]
    for (_, pointer, kind, value), (_, pointer_after, kind_after, now) in zip(
        tensors, after, strict=True
    ):
        assert (pointer, kind) == (pointer_after, kind_after)
        assert torch.equal(value, now)
    assert vectors.get("ada", "clip_l").grad is not None


def test_names_of_the_text_encoder_are_those_in_files(backbone):
    parts = backbone.parts_of(encoder_of(backbone))
    modules = dict(encoder_of(backbone).named_modules())
    assert parts.keys() == modules.keys() - {""}
    canonical = {part.name: modules[own] for own, (part,) in parts.items()}
    query = canonical["text_model.encoder.layers.1.self_attn.q_proj"]
    assert query.weight.shape == (32, 32)


def test_names_of_the_unet_are_diffusers_own(backbone):
    parts = backbone.parts_of(backbone.unet)
    assert all(layer == (Part(own),) for own, layer in parts.items())
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q" in parts


def test_checkpointed_modules_hold_all_attention(backbone):
    modules = list(backbone.checkpointed_modules())
    kinds = sorted({type(module).__name__ for module in modules})
    assert kinds == ["BasicTransformerBlock", "ResnetBlock2D"]
    inside = {id(m) for module in modules for m in module.modules()}
    attention = [m for name, m in backbone.unet.named_modules() if name.endswith("attn2")]
    assert attention
    assert all(id(module) in inside for module in attention)


@pytest.mark.parametrize(
    ("unet", "found"),
    [
        ({"in_channels": 9}, "an inpainting model whose UNet takes 9"),
        ({"in_channels": 8}, "a model whose UNet takes 8"),
        ({"cross_attention_dim": 48}, "a UNet for a context 48 wide with a text encoder 32"),
        ({"class_embed_type": "timestep"}, "an upscaler or unCLIP"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "an SDXL refiner",
        ),
    ],
)
def test_other_models_are_refused(make_backbone, unet, found):
    with pytest.raises(UnsupportedModelError, match=found) as error:
        make_backbone(unet=unet)
    assert "use Stable Diffusion 1.x, 2.x and XL" in str(error.value)


def test_a_decoder_of_other_latents_is_refused(make_backbone, tiny):
    with pytest.raises(InputError, match="16 channels, 8 pixels"):
        make_backbone(decoder=tiny.vae("tiny", latent_channels=16))
