"""The demo model through stock nodes, its references, and training on both."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a sketch of a person, dark skin, with round glasses, long red hair"
SEED, STEPS, GUIDANCE = 5, 6, 3.0
PAIR = (1_000_007, 1_000_005)


@pytest.fixture(scope="module")
def nodes(pack):
    return pack("nodes.paperdoll")


@pytest.fixture(scope="module")
def demo(pack, nodes, paperdoll_weights):
    """What Load Paperdoll Demo gives for an untrained model, by name of the output."""
    names = ("model", "clip", "vae", "face_model", "recipe")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(nodes, "WEIGHTS", paperdoll_weights)
        outputs = nodes.MagiCaptureLoadPaperdollDemo.execute(steps=4).args
    return SimpleNamespace(**dict(zip(names, outputs, strict=True)))


@pytest.fixture(scope="module")
def diffusers(pack, paperdoll_weights):
    """The same weights as the core loads them."""
    with torch.inference_mode(False):
        return pack("magicapture.backbones").load_backbone(paperdoll_weights)


def encoded(clip, text: str) -> list:
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0]


def stock_samples(demo, scheduler: str = "simple") -> Tensor:
    """Latents by the stock KSampler from a stock empty latent, by Euler's method."""
    import nodes

    latent = nodes.EmptyLatentImage().generate(128, 128, 2)[0]
    prompts = encoded(demo.clip, TEXT), encoded(demo.clip, "")
    settings = (SEED, STEPS, GUIDANCE, "euler", scheduler, *prompts, latent)
    return nodes.KSampler().sample(demo.model, *settings)[0]["samples"]


def own_samples(pack, backbone, sigmas: Tensor) -> Tensor:
    """The same by Euler's method on the probability flow (Karras et al. 2022), with diffusers."""
    prompt = pack("magicapture.tokens").Prompt
    none = pack("magicapture.tokens").TokenVectors({})
    texts = [prompt("")] * 2 + [prompt(TEXT)] * 2
    conditioning = backbone.encode_prompts(texts, none)
    noise = torch.randn((2, 8, 16, 16), generator=torch.manual_seed(SEED))
    abar = backbone.schedule.levels.alphas_cumprod
    known = ((1 - abar) / abar).sqrt()
    x = noise * (1 + sigmas[0] ** 2).sqrt()
    for now, then in pairwise(sigmas):
        t = (known - now).abs().argmin().expand(4)
        scaled = x / (now**2 + 1).sqrt()
        without, with_prompt = backbone.predict(torch.cat([scaled] * 2), t, conditioning).chunk(2)
        x = x + (then - now) * (without + GUIDANCE * (with_prompt - without))
    return x


def test_stock_sampling_equals_the_core_on_the_same_noise(pack, demo, diffusers):
    import comfy.samplers

    sampling = demo.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    ours, stock = own_samples(pack, diffusers, sigmas), stock_samples(demo)
    assert stock.shape == (2, 8, 16, 16)
    assert (ours - stock).abs().max() < 1e-3 * ours.abs().max()


def test_decoding_and_encoding_equal_the_core(pack, demo, diffusers):
    import nodes

    latents = torch.randn((2, 8, 16, 16), generator=torch.manual_seed(0))
    pictures = nodes.VAEDecode().decode(demo.vae, {"samples": latents})[0]
    expected = diffusers.decode(latents).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-4)
    again = nodes.VAEEncode().encode(demo.vae, pictures)[0]["samples"]
    torch.testing.assert_close(
        again, diffusers.encode(pictures.movedim(-1, 1)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("text", [TEXT, "", "Zebra!", "a , of " * 40])
def test_tokens_equal_those_of_transformers(demo, diffusers, text):
    rows = demo.clip.tokenize(text)["l"]
    assert all(len(row) == 48 for row in rows)
    tokens = [token for row in rows for token, _ in row[1:]]
    end = diffusers.tokenizers["clip_l"].eos_token_id
    words = [token for token in tokens if token not in (end, rows[0][0][0])]
    assert words == diffusers.word_ids("clip_l", text)


@pytest.mark.parametrize("skip", [-1, -2])
def test_prompts_equal_those_of_transformers(pack, demo, diffusers, skip):
    import nodes

    clip = nodes.CLIPSetLastLayer().set_last_layer(demo.clip, skip)[0]
    tokenizer, encoder = diffusers.tokenizers["clip_l"], diffusers.text_encoders["clip_l"]
    ids = tokenizer(TEXT, padding="max_length", max_length=48, return_tensors="pt").input_ids
    states = encoder(ids, output_hidden_states=True)
    expected = states.last_hidden_state
    if skip == -2:
        text_model = getattr(encoder, "text_model", encoder)
        expected = text_model.final_layer_norm(states.hidden_states[-2])
    torch.testing.assert_close(encoded(clip, TEXT)[0][0], expected, rtol=1e-3, atol=1e-4)


def test_previews_show_the_pictures_colours(demo, diffusers):
    from latent_preview import Latent2RGBPreviewer

    pack_format = demo.model.model.latent_format
    factors, bias = (
        torch.tensor(pack_format.latent_rgb_factors),
        pack_format.latent_rgb_factors_bias,
    )
    assert factors.shape == (8, 3) and len(bias) == 3
    previewer = Latent2RGBPreviewer(pack_format.latent_rgb_factors, bias)
    picture = previewer.decode_latent_to_preview(torch.zeros(1, 8, 16, 16))
    expected = [round(255 * min(max((b + 1) / 2, 0), 1) - 0.5) for b in bias]
    assert picture.size == (16, 16)
    assert all(abs(a - b) <= 1 for a, b in zip(picture.getpixel((3, 3)), expected, strict=True))


# -- references -------------------------------------------------------------------------------


def test_references_have_exact_masks_and_the_true_pictures(pack, nodes):
    outputs = nodes.MagiCaptureDrawPaperdollPhotos.execute(*PAIR, count=3).args
    person, style, person_images, style_images, person_masks, style_masks, truth = outputs
    assert len(person) == len(style) == 3
    assert person_images.shape == style_images.shape == truth.shape == (3, 128, 128, 3)
    world = pack("magicapture.paperdoll")
    pair = pack("magicapture.paperdoll.pairs").make_pair(*PAIR, photos=3)
    dolls = {0: (pair.source, person_masks, person), 1: (pair.reference, style_masks, style)}
    for shown, masks, references in dolls.values():
        for i, doll in enumerate(shown):
            inside = torch.isin(torch.tensor(doll.labels), torch.tensor(sorted(world.FACE_LABELS)))
            assert ((masks[i] >= 0.5) == inside).float().mean() > 0.995
            assert torch.equal(references.photos[i].face_mask[0], masks[i])
            assert torch.equal(references.photos[i].landmarks, torch.from_numpy(doll.landmarks))
    assert not person.images[0].is_inference(), "training needs ordinary tensors"


@pytest.mark.parametrize(
    "identity, look, message",
    [
        (7, 1_000_005, "identity.*trained on"),
        (1_000_007, 7, "style.*trained on"),
        (1_500_000, 1_000_005, "belongs to no split"),
        (1_000_007, 2_000_000, "two splits"),
    ],
)
def test_seeds_that_training_may_have_seen_are_refused(pack, nodes, identity, look, message):
    with pytest.raises(pack("magicapture.errors").InputError, match=message) as raised:
        nodes.MagiCaptureDrawPaperdollPhotos.execute(identity, look, count=2)
    assert str(raised.value).startswith("Draw Paperdoll Photos: ")


def test_missing_weights_are_told(pack, nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "WEIGHTS", tmp_path)
    with pytest.raises(pack("magicapture.errors").StorageError, match=r"Load Paperdoll.*pretrain"):
        nodes.MagiCaptureLoadPaperdollDemo.execute(steps=4)


# -- training on it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(pack, nodes, demo):
    """The outputs of Train MagiCapture on the demo model: 4 steps on 3 + 3 pictures."""
    with torch.inference_mode():
        person, style = nodes.MagiCaptureDrawPaperdollPhotos.execute(*PAIR, count=3).args[:2]
        concept = pack("nodes.references").MagiCaptureDefineConcept.execute
        concepts = {
            "subject": concept(person, "subject", "doll-ada", "person", 1).args[0],
            "style": concept(style, "style", "doll-film", "person", 2).args[0],
        }
        recipe = replace(demo.recipe, variants=2, lora=replace(demo.recipe.lora, rank=2))
        train = pack("nodes.training").MagiCaptureTrain.execute
        parts = (demo.model, demo.clip, demo.vae)
        settings = {"training_seed": 1, "preview_every": 2, "resume": False, "recipe": recipe}
        return train(*parts, **concepts, **settings, face_model=demo.face_model).args


def test_it_trains_with_all_losses(trained):
    adapter, _, previews, report, _ = trained
    for name in ("source", "style", "composed", "attention"):
        assert name in report
    assert "Note" not in report, "no warning: masks, landmarks and face recognition model are there"
    assert previews.shape[1:] == (128, 128, 3)
    assert adapter.family == "sd1" and adapter.recipe.resolution == 128


def test_training_leaves_the_model_as_it_was(demo, trained, nodes, paperdoll_weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "WEIGHTS", paperdoll_weights)
        fresh = nodes.MagiCaptureLoadPaperdollDemo.execute(steps=4).args[0]
    own = demo.model.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in fresh.model.state_dict().items())


def test_stock_loaders_take_what_was_trained(pack, demo, trained, caplog):
    """LoraLoader without an unloaded key, embedding:NAME from its file, and a changed picture."""
    import nodes as stock

    adapter = trained[0]
    for name, weights in adapter.lora.items():  # an untouched LoRA's `up` is all zeros
        weights.up.data += 0.05 * torch.randn(
            weights.up.shape, generator=torch.manual_seed(len(name))
        )
    with caplog.at_level(logging.WARNING):
        pack("nodes.adapters").MagiCaptureSaveAdapter.execute(adapter, "doll-lora")
        model, clip = stock.LoraLoader().load_lora(
            demo.model, demo.clip, "doll-lora.safetensors", 1.0, 1.0
        )
        text = "a photo of embedding:doll-ada person in the embedding:doll-film style"
        with_tokens = encoded(clip, text)[0][0]
    assert "not loaded" not in caplog.text and "does not exist" not in caplog.text
    plain = encoded(clip, "a photo of person in the style")[0][0]
    assert not torch.equal(with_tokens, plain)
    changed = SimpleNamespace(model=model, clip=clip)
    assert not torch.allclose(stock_samples(changed), stock_samples(demo), atol=1e-2)
