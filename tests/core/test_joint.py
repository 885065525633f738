"""Joint attention: a tiny transformer of Flux's class as a backbone, and its maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magicapture.attention import Attention, AttentionCapture, TappedTorch, captured, select
from magicapture.backbone import Conditioning
from magicapture.backbones import DiffusersBackbone, load_backbone
from magicapture.backbones.passes import flux_pass
from magicapture.checkpointing import checkpointed
from magicapture.demo.example import doll_job
from magicapture.errors import UnsupportedModelError
from magicapture.paperdoll.pairs import make_pair
from magicapture.paperdoll.recipe import doll_recipe
from magicapture.paperdoll.weights import loss_embedder, model_folder
from magicapture.prompts import as_embeddings
from magicapture.recipes import with_steps
from magicapture.refocusing.bias import holding
from magicapture.refocusing.focus import Focus
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.schedule import FlowLevels, Schedule
from magicapture.tokens import Prompt, TokenVectors
from magicapture.training import Stepped, Trainer

TEXT = "a photo of <ada> person"
WIDTH, HEIGHT = 8, 12  # latent cells


def tiny_transformer(**changes: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 32,
        "num_layers": 2,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 128,
        "pooled_projection_dim": 128,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": False,
    }
    network = FluxTransformer2DModel(**settings | changes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def backbone() -> DiffusersBackbone:
    doll = load_backbone(model_folder())
    return DiffusersBackbone(
        unet=tiny_transformer(),
        vae=doll.vae,
        text_encoders=doll.text_encoders,
        tokenizers=doll.tokenizers,
        schedule=Schedule(FlowLevels(), "flow"),
    )


@pytest.fixture
def conditioning(backbone: DiffusersBackbone) -> Conditioning:
    values = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    vectors = TokenVectors({"ada": {"clip_l": values}})
    with torch.no_grad():
        return backbone.encode_prompts([Prompt(TEXT), Prompt("a person")], vectors)


@pytest.fixture
def noisy() -> Tensor:
    return torch.randn(2, 8, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))


TIMES = torch.tensor([0.3, 0.8])


def test_a_transformer_has_a_family_of_its_own(backbone):
    assert backbone.family == "doll_flux"
    doll = load_backbone(model_folder())
    with pytest.raises(UnsupportedModelError, match="Flux"):
        DiffusersBackbone(
            tiny_transformer(in_channels=64),
            doll.vae,
            doll.text_encoders,
            doll.tokenizers,
            doll.schedule,
        )


def test_a_pass_packs_latents_as_diffusers_pipeline_does(backbone, conditioning, noisy):
    from diffusers import FluxPipeline

    pipeline: Any = FluxPipeline
    packed = pipeline._pack_latents(noisy, 2, 8, HEIGHT, WIDTH)
    ids = pipeline._prepare_latent_image_ids(2, HEIGHT // 2, WIDTH // 2, "cpu", torch.float32)
    with torch.no_grad():
        expected = backbone.unet(
            hidden_states=packed,
            timestep=TIMES,
            encoder_hidden_states=conditioning.context,
            pooled_projections=conditioning.extra["pooled"],
            img_ids=ids,
            txt_ids=torch.zeros(conditioning.context.shape[1], 3),
        ).sample
        found = backbone.predict(noisy, TIMES, conditioning)
    whole = pipeline._unpack_latents(expected, 8 * HEIGHT, 8 * WIDTH, 8)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)


def test_the_pooled_text_is_the_state_of_the_end(backbone, conditioning):
    tokenizer = backbone.tokenizers["clip_l"]
    ids = torch.tensor([tokenizer("a person", padding="max_length").input_ids])
    with torch.no_grad():
        expected = backbone.text_encoders["clip_l"](input_ids=ids)
    end = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
    state = expected.last_hidden_state[0, end]
    torch.testing.assert_close(conditioning.extra["pooled"][1], state)


def test_recording_changes_nothing_and_shares_are_those_of_the_softmax(
    backbone, conditioning, noisy
):
    network = TappedTorch.of(backbone.unet)
    with torch.no_grad():
        expected = backbone.predict(noisy, TIMES, conditioning)
        capture = AttentionCapture(network, select(backbone.unet))
        with capture.recording():
            found = backbone.predict(noisy, TIMES, conditioning)
        seen = capture.seen("transformer_blocks.1.attn")
        [first, second] = capture.maps(conditioning.positions, (HEIGHT, WIDTH))
    assert torch.equal(found, expected)
    assert seen.size == (HEIGHT // 2, WIDTH // 2) and seen.is_joint
    logits = torch.einsum("bhnd,bhld->bhnl", seen.query, seen.key) / 4  # 16 wide
    scores = logits.softmax(-1).mean(1)[0, -seen.size[0] * seen.size[1] :]
    wanted = scores[:, list(conditioning.positions[0]["ada"])].sum(-1)
    assert (second.layer, second.factor, second.keys) == (seen.site, 2, ((0, "ada"),))
    torch.testing.assert_close(second.values[0].flatten(), wanted)
    assert not torch.allclose(first.values, second.values)


@pytest.mark.parametrize(("most", "rows", "columns"), [(3, (1, 3, 5), (1, 3)), (2, (1, 4), (1,))])
def test_a_large_map_is_looked_at_from_the_middle_of_its_cells(
    backbone, conditioning, noisy, most, rows, columns
):
    capture, found = AttentionCapture(TappedTorch.of(backbone.unet), select(backbone.unet)), []
    for cells in (None, most, 6):
        with torch.no_grad(), capture.recording():
            backbone.predict(noisy, TIMES, conditioning)
        found.append(capture.maps(conditioning.positions, (HEIGHT, WIDTH), most=cells))
    for whole, few, enough in zip(*found, strict=True):
        middle = whole.values[:, list(rows)][:, :, list(columns)]
        torch.testing.assert_close(few.values, middle)
        assert (few.factor, few.keys) == (whole.factor, whole.keys)
        assert torch.equal(enough.values, whole.values)


def test_averages_are_those_of_the_softmax_over_the_picture_alone(backbone, conditioning, noisy):
    capture = AttentionCapture(TappedTorch.of(backbone.unet), select(backbone.unet))
    with torch.no_grad(), capture.recording():
        backbone.predict(noisy, TIMES, conditioning)
    seen = capture.seen("transformer_blocks.1.attn")
    values = torch.rand(2, HEIGHT // 2 * WIDTH // 2, 3)
    words = seen.columns()
    logits = torch.einsum("bhnd,bhld->bhnl", seen.query, seen.key) / 4
    scores = logits.softmax(-1).mean(1)[:, words:, words:]
    torch.testing.assert_close(
        seen.averaged(values), (scores / scores.sum(-1, keepdim=True)) @ values
    )
    torch.testing.assert_close(seen.averaged(values[..., :1]), seen.averaged(values)[..., :1])


def loss_of(backbone: DiffusersBackbone, noisy: Tensor, conditioning: Conditioning) -> Tensor:
    with captured(backbone.attention) as capture:
        with capture.recording():
            backbone.predict(noisy, TIMES.to(noisy), conditioning)
        maps = capture.maps(conditioning.positions, (HEIGHT, WIDTH))
    weight = torch.linspace(0, 1, maps[0].values[0].numel()).view(maps[0].values.shape[1:])
    return torch.stack([(layer.values * weight).square().sum() for layer in maps]).sum()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_gradient_of_the_maps_is_that_of_finite_differences(
    backbone, conditioning, noisy, checkpointing
):
    backbone.unet.double()
    try:
        context = conditioning.context.double().requires_grad_()
        extra = {name: values.double() for name, values in conditioning.extra.items()}

        def loss(values: Tensor) -> Tensor:
            return loss_of(
                backbone, noisy.double(), Conditioning(values, extra, conditioning.positions)
            )

        blocks = list(backbone.checkpointed_modules()) if checkpointing else []
        assert len(blocks) == (3 if checkpointing else 0)
        with checkpointed(blocks):
            [gradient] = torch.autograd.grad(loss(context), [context])
        places = gradient.abs().flatten().topk(3).indices
        for place in places:
            step = torch.zeros_like(context).flatten()
            step[place] = 1e-2
            step = step.view_as(context)
            with torch.no_grad():
                slope = (loss(context + step) - loss(context - step)) / 2e-2
            torch.testing.assert_close(
                gradient.flatten()[place], slope.double(), rtol=1e-2, atol=0
            )  # maps are float32
    finally:
        backbone.unet.float()


def test_held_attention_stays_in_its_region(backbone, conditioning, noisy):
    """Of the held row alone, and of the words alone: what cells share among themselves is free."""
    region = torch.zeros(1, 1, HEIGHT, WIDTH)
    region[..., : HEIGHT // 2, :] = 1
    columns = tuple(conditioning.positions[0]["ada"])
    rows = ((Focus("ada", "subject", columns),), ())
    network = TappedTorch.of(backbone.unet)
    sites = select(backbone.unet)
    biased: dict[str, Attention] = {}

    def keep(attention: Attention, run: Any) -> Tensor:
        biased[attention.site] = attention
        return run(attention)

    bias = holding(rows, region.expand(2, -1, -1, -1), 50)
    with torch.no_grad(), network.tapped(keep, sites), network.tapped(bias, sites):
        plain = backbone.predict(noisy, TIMES, Conditioning(**vars(conditioning)))
    for attention in biased.values():
        indicators = torch.zeros(2, attention.columns(), 1)
        indicators[:, list(columns)] = 1
        shares = attention.shares(indicators).view(2, HEIGHT // 2, WIDTH // 2)
        assert shares[0, HEIGHT // 4 :].max() < 1e-12 < shares[0, : HEIGHT // 4].min()
        assert shares[1, HEIGHT // 4 :].min() > 1e-6
    free = backbone.predict(noisy, TIMES, conditioning)
    assert torch.allclose(free[1], plain[1], atol=1e-5) and not torch.allclose(free[0], plain[0])


@pytest.mark.parametrize("sampler", ["euler_a", "ddim", "dpmpp_2m"])
def test_it_draws_by_every_sampler(backbone, sampler):
    settings = SamplingSettings(sampler=sampler, steps=3, width=64, height=96, guidance=2)
    images = sample(backbone, ["a person", "a doll"], settings=settings, seed=3)
    again = sample(backbone, ["a doll"], settings=settings, seed=4)
    assert images.shape == (2, 3, 96, 64) and images.std() > 0
    torch.testing.assert_close(images[1:], again, atol=1e-4, rtol=0)


def test_a_pass_takes_half_precision(backbone, conditioning, noisy):
    with backbone.training(torch.bfloat16), torch.no_grad():
        half = backbone.predict(noisy, TIMES, conditioning)
    with torch.no_grad():
        whole = flux_pass(backbone.unet, noisy, TIMES, conditioning, torch.float32)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).norm() / whole.norm() < 0.1


def test_a_training_with_every_loss_moves_vectors_and_lora(backbone):
    """By the default recipe at the dolls' size; then drawn, and the model left as it came."""
    pair = make_pair(1_000_000, 1_000_099, poses=1)
    job = doll_job(pair, with_steps(doll_recipe(model="transformer"), 4))
    before = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    losses: list[set[str]] = []

    def listener(event: Any) -> None:
        if isinstance(event, Stepped):
            losses.append(set(event.losses))

    with Trainer.open(job, backbone, embedder=loss_embedder(), listener=listener) as trainer:
        adapter = trainer.run()
    every = {"source", "style", "composed", "attention", "identity", "unconditional"}
    assert losses[0] == {"source", "style"} and set().union(*losses) == every
    assert adapter.family == "doll_flux"
    assert {name.partition(".")[0] for name in adapter.lora} == {"transformer"}
    assert any(weights.up.any() for weights in adapter.lora.values())
    after = backbone.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    prompt = adapter.prompt()
    settings = SamplingSettings(steps=2, width=128, height=128)
    plain = sample(backbone, prompt, adapter.vectors(), settings, seed=1)
    with adapted(backbone, adapter):
        drawn = sample(backbone, prompt, adapter.vectors(), settings, seed=1)
    assert not torch.equal(plain, drawn)


def test_a_training_with_phrases_moves_the_lora_alone(backbone):
    """From the first step, at the source and style tasks; drawn by the token and in plain words."""
    pair = make_pair(1_000_000, 1_000_099, poses=1)
    job = doll_job(pair, with_steps(doll_recipe(model="transformer"), 4))
    subject, style = (
        replace(of, concept=replace(of.concept, vectors=0, phrase=phrase))
        for of, phrase in zip(job.learnables, ("ada", "fable"), strict=True)
    )
    losses: list[set[str]] = []

    def listener(event: Any) -> None:
        if isinstance(event, Stepped):
            losses.append(set(event.losses))

    job = replace(job, subject=subject, style=style)
    with Trainer.open(job, backbone, embedder=loss_embedder(), listener=listener) as trainer:
        adapter = trainer.run()
    assert losses[0] == {"source", "style", "attention"}
    assert adapter.tokens == {} and any(weights.up.any() for weights in adapter.lora.values())
    settings = SamplingSettings(steps=2, width=128, height=128)
    text = as_embeddings(adapter.prompt(), adapter.concepts)
    assert text == "a photo of ada person in the fable style"
    with adapted(backbone, adapter):
        drawn = sample(backbone, adapter.prompt(), adapter.vectors(), settings, seed=1)
        assert torch.equal(sample(backbone, text, None, settings, seed=1), drawn)
