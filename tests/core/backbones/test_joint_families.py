"""Families of joint attention against diffusers' pipelines, explicit softmax and differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from magicapture.attention import captured, cross_attentions, select
from magicapture.backbones import DiffusersBackbone, load_backbone
from magicapture.checkpointing import checkpointed
from magicapture.errors import InputError, UnsupportedModelError
from magicapture.lora import LoraWeights, injected, target_names
from magicapture.refocusing.bias import bias_parts, holding
from magicapture.refocusing.focus import Focus
from magicapture.sampling import SamplingSettings, sample
from magicapture.tokens import TokenVectors
from tests.core._families import KINDS, Kind, chroma_transformer, flux2_vae, klein_transformer
from tests.core.joint import lora_of, prompts

NOTHING = TokenVectors({})
TEXTS = ["a photo of <ada> woman in the style of a person", "a <ada> woman"]
LEVELS = (0.3, 0.7)
PLACES = (4, 6)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def backbone(kind: Kind, tiny: SimpleNamespace, tmp_path: Path) -> DiffusersBackbone:
    return kind.make(tiny, tmp_path)


@pytest.fixture
def pipeline(kind: Kind, backbone: DiffusersBackbone) -> Any:
    (key,) = backbone.text_encoders
    return kind.pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=backbone.vae,
        text_encoder=backbone.text_encoders[key],
        tokenizer=backbone.tokenizers[key],
        transformer=backbone.unet,
    )


def noise(kind: Kind, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (2, kind.channels, *(kind.cell * side for side in PLACES))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def test_prompts_are_encoded_as_by_the_pipeline(kind, backbone, pipeline) -> None:
    texts = ["a photo of a woman, in the style.", "a", ""]
    found = backbone.encode_prompts(prompts(*texts), NOTHING)
    expected, _, *rest = pipeline.encode_prompt(texts)
    assert found.context.shape[-1] == expected.shape[-1]
    lengths = found.extra.get("length", torch.full((3,), 512)).tolist()
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found.context[row, :length], expected[row, :length])
    if kind.family == "chroma":  # all its words, their end and one filling are seen
        assert lengths == rest[0].sum(1).tolist()


@torch.no_grad()
def test_the_transformer_is_told_what_the_pipeline_tells_it(kind, backbone, pipeline) -> None:
    text = "a photo of a woman"
    told = backbone.encode_prompts(prompts(text, text), NOTHING)
    noisy, seen, steps = noise(kind), [], []
    hook = backbone.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )

    def step(prediction, timestep, latents, return_dict):
        steps.append(prediction)
        return (latents,)

    pipeline.scheduler.step = step
    packed = pipeline._pack_latents(noisy, *noisy.shape) if kind.cell == 2 else noisy.clone()
    pipeline(prompt=[text, text], height=64, width=96, num_inference_steps=2, guidance_scale=1,
             latents=packed, output_type="latent",
             max_sequence_length=told.context.shape[1])  # fmt: skip
    theirs = seen[1]
    found = backbone.predict(noisy, theirs["timestep"], told)
    hook.remove()
    ours = seen[2]
    assert 0.5 < float(ours["timestep"][0]) < 1
    for name in ("hidden_states", "encoder_hidden_states", "timestep"):
        torch.testing.assert_close(ours[name], theirs[name])
    for name in ("img_ids", "txt_ids"):
        other = theirs[name]
        torch.testing.assert_close(ours[name], (other[0] if other.ndim == 3 else other).float())
    output = found.unflatten(2, (4, -1)).unflatten(4, (6, -1))  # b c h p w q
    output = output.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    torch.testing.assert_close(output, steps[1])


@torch.no_grad()
def test_rows_of_one_batch_do_not_see_each_other(kind, backbone) -> None:
    told = backbone.encode_prompts(prompts(*TEXTS), kind.told())
    noisy, levels = noise(kind), torch.tensor(LEVELS)
    together = backbone.predict(noisy, levels, told)
    for row in (slice(0, 1), slice(1, 2)):
        alone = backbone.predict(noisy[row], levels[row], told[row])
        torch.testing.assert_close(alone, together[row])


@pytest.mark.parametrize("kind", [KINDS["chroma"]], ids=["chroma"])
@torch.no_grad()
def test_texts_of_their_own_length_are_those_of_one_masked_batch(kind, backbone, pipeline) -> None:
    """All filled up to 512, and the fillings hidden, as the network is meant to be run.

    The pipeline's own mask is of numbers, which its attention adds: that hides nothing.
    """
    texts = ["a photo of a woman in the style", "a"]
    noisy, levels, seen = noise(kind), torch.tensor(LEVELS), []
    hook = backbone.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    found = backbone.predict(noisy, levels, backbone.encode_prompts(prompts(*texts), NOTHING))
    hook.remove()
    context, places, mask, *_ = pipeline.encode_prompt(texts)
    whole = pipeline._prepare_attention_mask(2, 24, noisy.dtype, mask)
    assert whole.dtype == torch.float32 and len(seen) == 2
    told = {
        "hidden_states": pipeline._pack_latents(noisy, *noisy.shape),
        "timestep": levels,
        "encoder_hidden_states": context,
        "txt_ids": places,
        "img_ids": seen[0]["img_ids"],
    }
    expected, numbers = (
        pipeline._unpack_latents(
            backbone.unet(**told, attention_mask=m).sample, 64, 96, pipeline.vae_scale_factor
        )
        for m in (whole.bool(), whole)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(numbers, expected, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_maps_are_an_explicit_softmax_and_change_nothing(kind, backbone) -> None:
    """Also of rows that run apart, each with the columns of its own text."""
    told = backbone.encode_prompts(prompts(*TEXTS), kind.told())
    noisy, levels, parts = noise(kind), torch.tensor(LEVELS), []
    plain = backbone.predict(noisy, levels, told)
    assert list(cross_attentions(backbone.unet)) == [
        f"{stack}.{i}.attn"
        for stack in ("transformer_blocks", "single_transformer_blocks")
        for i in range(2)
    ]
    assert select(backbone.unet) == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]

    def keep(one: Any, run: Any) -> Tensor:
        if one.site == "transformer_blocks.1.attn":
            parts.append(one)
        return run(one)

    with captured(backbone.attention) as capture, backbone.attention.tapped(keep, capture.sites):
        with capture.recording():
            found = backbone.predict(noisy, levels, told)
        assert torch.equal(found, plain)
        maps = capture.maps(told.positions, noisy.shape[-2:])[-1]
    assert maps.keys == ((0, "ada"), (1, "ada"))
    lengths = told.extra.get("length", torch.full((2,), 512)).tolist()
    assert [one.index for one in parts] == ([(0,), (1,)] if "length" in told.extra else [None])
    for one in parts:
        for place, row in enumerate(one.index or (0, 1)):
            assert one.size == PLACES
            assert one.words == slice(0, lengths[row])
            assert one.cells == slice(lengths[row], lengths[row] + 24)
            logits = one.query[place] @ one.key[place].mT / 4
            shares = logits.softmax(-1).mean(0)[one.cells]
            columns = told.positions[row]["ada"]
            assert columns
            torch.testing.assert_close(maps.values[row].flatten(), shares[:, columns].sum(-1))


@torch.no_grad()
def test_a_bias_is_an_explicit_mask(kind, backbone) -> None:
    told = backbone.encode_prompts(prompts(*TEXTS), kind.told())
    noisy, levels, seen = noise(kind), torch.tensor(LEVELS), []
    rows = [(Focus("ada", "subject", tuple(of["ada"])),) for of in told.positions]
    regions = torch.zeros(2, 1, *noisy.shape[-2:])
    for row in range(2):
        regions[row, :, : (1 + row) * kind.cell, : 3 * kind.cell] = 1

    def spy(one: Any, run: Any) -> Tensor:
        out = run(one)
        seen.append((one, out))
        return out

    site, network = "transformer_blocks.1.attn", backbone.attention
    with network.tapped(holding(rows, regions, 3.0), [site]), network.tapped(spy, [site]):
        held = backbone.predict(noisy, levels, told)
    assert not torch.allclose(held, backbone.predict(noisy, levels, told))
    places = torch.nn.functional.avg_pool2d(regions, kind.cell)
    for one, out in seen:
        for place, row in enumerate(one.index or (0, 1)):
            cells, _ = bias_parts(rows, places, 3.0, 512)
            logits = one.query[place] @ one.key[place].mT / 4
            logits[:, one.cells, told.positions[row]["ada"]] += cells[row, :, :1]
            expected = logits.softmax(-1) @ one.value[place]
            torch.testing.assert_close(out[place], expected, rtol=1e-4, atol=1e-5)


def losses(
    kind: Kind,
    backbone: DiffusersBackbone,
    vectors: TokenVectors,
    state: dict[str, LoraWeights],
    checkpointing: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Of reconstruction and refocusing together; the gradient at vectors and LoRA."""
    noisy, target = (noise(kind, seed, torch.float64) for seed in (1, 2))
    for values in vectors.parameters():
        values.grad = None
    with backbone.training(None), injected(backbone.unet, list(state), 2) as lora:
        lora.load(state)
        blocks = list(backbone.checkpointed_modules()) if checkpointing else []
        assert len(blocks) == 4 * checkpointing
        with checkpointed(blocks), captured(backbone.attention) as capture:
            told = backbone.encode_prompts(prompts(*TEXTS), vectors)
            with capture.recording():
                found = backbone.predict(noisy, torch.tensor(LEVELS), told)
            maps = capture.maps(told.positions, noisy.shape[-2:])
            weight = torch.linspace(0, 1, 24).view(PLACES)
            held = torch.stack([(of.values * weight).square().sum() for of in maps]).sum()
            loss = (found - target).square().mean() + 100 * held
            if torch.is_grad_enabled():
                loss.backward()
        return loss.detach(), [p.grad for p in (*vectors.parameters(), *lora.parameters())]


def test_the_gradient_is_that_of_central_differences(kind, backbone) -> None:
    """With checkpoints too; the step is large, since norms and places round to float32."""
    for module in backbone.modules.values():
        module.double()
    state, vectors = lora_of(backbone), kind.told().double()
    _, gradient = losses(kind, backbone, vectors, state)
    _, again = losses(kind, backbone, vectors, state, checkpointing=True)
    for one, two in zip(gradient, again, strict=True):
        assert one.any()
        torch.testing.assert_close(one, two)
    random = torch.Generator().manual_seed(4)
    direction = [torch.randn(g.shape, generator=random) for g in gradient]
    own = list(vectors.parameters())
    pairs = list(zip(*[iter(direction[len(own) :])] * 2, strict=True))
    ends = []
    with torch.no_grad():
        for step in (5e-3, -5e-3):
            moved = {
                name: replace(w, down=w.down + step * down, up=w.up + step * up)
                for (name, w), (down, up) in zip(state.items(), pairs, strict=True)
            }
            for values, along in zip(own, direction, strict=False):
                values += step * along
            ends.append(losses(kind, backbone, vectors, moved)[0])
            for values, along in zip(own, direction, strict=False):
                values -= step * along
    expected = (ends[0] - ends[1]) / 1e-2
    found = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    torch.testing.assert_close(found.double(), expected.double(), rtol=5e-3, atol=1e-5)


@torch.no_grad()
def test_in_bfloat16_it_is_nearly_the_same(kind, backbone) -> None:
    """Also the columns of long texts, whose numbers bfloat16 has not."""
    noisy, found, name = noise(kind), [], backbone.fingerprint()
    for dtype in (None, torch.bfloat16):
        with backbone.training(dtype):
            told = backbone.encode_prompts(prompts(*TEXTS), kind.told())
            found.append(backbone.predict(noisy, torch.tensor(LEVELS), told))
    exact, near = found
    assert near.dtype == torch.float32 and backbone.fingerprint() == name
    assert 0 < (near - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_latents_are_there_and_back_as_the_pipeline_has_them(kind, backbone, pipeline) -> None:
    """Flux.2's in places of 2x2, each channel by its own scale; gradients reach them."""
    images = torch.rand(1, 3, 64, 96)
    latents = backbone.encode(images)
    assert latents.shape == (1, kind.channels, 4 * kind.cell, 6 * kind.cell)
    assert backbone.downscale * kind.cell == 16 and backbone.latent_channels == kind.channels
    raw = backbone.vae.encode(images * 2 - 1).latent_dist.mode()
    if kind.cell == 1:
        expected = pipeline._encode_vae_image(images * 2 - 1, None)
    else:
        config = backbone.vae.config
        expected = (raw - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(latents, expected)
    latents.requires_grad_()
    torch.testing.assert_close(backbone.decode(latents) * 2 - 1, backbone.vae.decode(raw).sample)
    backbone.decode(latents).square().mean().backward()
    assert latents.grad.abs().sum() > 0


def test_lora_goes_where_words_and_picture_meet(kind, backbone) -> None:
    unet = backbone.unet
    double = [f"transformer_blocks.{i}." for i in range(2)]
    single = [f"single_transformer_blocks.{i}." for i in range(2)]
    attention = {f"{b}attn.{p}" for b in double for p in (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )}  # fmt: skip
    fused = kind.family != "chroma"
    own = ("to_qkv_mlp_proj",) if fused else ("to_q", "to_k", "to_v")
    attention |= {f"{b}attn.{p}" for b in single for p in own}
    assert set(target_names(unet, "cross_and_self", "transformer")) == attention
    cross = {
        n for n in attention if n.startswith("single") or ".to_q" in n or "_k_" in n or "_v_" in n
    }
    assert set(target_names(unet, "cross", "transformer")) == cross
    ends = ("linear_in", "linear_out") if fused else ("net.0.proj", "net.2")
    feed = {f"{b}{ff}.{e}" for b in double for ff in ("ff", "ff_context") for e in ends}
    feed |= {
        b + e for b in single for e in (("attn.to_out",) if fused else ("proj_mlp", "proj_out"))
    }
    assert set(target_names(unet, "all_linear", "transformer")) == attention | feed


def test_a_folder_in_pieces(kind, pipeline, backbone, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert len(list((tmp_path / "model" / "transformer").glob("*.safetensors"))) > 1
    loaded = load_backbone(tmp_path / "model")
    assert loaded.family == kind.family and set(loaded.text_encoders) == set(backbone.text_encoders)
    mu = 1.15 if kind.family == "chroma" else 2.02
    levels: Any = loaded.schedule.levels
    drawn = levels.shift if kind.family == "chroma" else 3
    assert (levels.shift, levels.shift_of_draws) == pytest.approx((2.718281828**mu, drawn))
    noisy, levels = noise(kind), torch.tensor(LEVELS)
    with torch.no_grad():
        own, other = (b.encode_prompts(prompts(*TEXTS), kind.told()) for b in (loaded, backbone))
        assert torch.equal(own.context, other.context)
        assert torch.equal(
            loaded.predict(noisy, levels, own), backbone.predict(noisy, levels, other)
        )
        images = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(loaded.encode(images), backbone.encode(images))
    assert load_backbone(tmp_path / "model", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_pictures_are_drawn_by_guidance_with_a_negative_prompt(kind, backbone) -> None:
    few = SamplingSettings("ddim", steps=2, width=64, height=80)
    image = sample(backbone, "a photo of a woman", settings=few)
    assert image.shape == (1, 3, 80, 64)
    other = sample(backbone, "a photo of a woman", settings=replace(few, negative="a style"))
    assert not torch.equal(image, other)
    assert few.scale(backbone.family) == (5 if kind.family == "chroma" else 4)
    with pytest.raises(InputError, match="multiples of 16"):
        sample(backbone, "a photo", settings=replace(few, height=72))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "match", "changes"),
    [
        ("klein", "distilled in",
         {"transformer": lambda tiny: klein_transformer(guidance_embeds=True)}),
        ("klein", "latents that make 32", {"vae": lambda tiny: flux2_vae(latent_channels=8)}),
        ("klein", "a text encoder 64", {"text_encoder": lambda tiny: tiny.qwen(hidden_size=64)}),
        ("klein", "kind clip", {"text_encoder": lambda tiny: tiny.text_encoder(hidden_size=48)}),
        ("chroma", "inpainting or control",
         {"transformer": lambda tiny: chroma_transformer(in_channels=32, out_channels=16)}),
        ("chroma", "another kind",
         {"transformer": lambda tiny: chroma_transformer(joint_attention_dim=64)}),
        ("chroma", "kind clip", {"text_encoder": lambda tiny: tiny.text_encoder(hidden_size=48)}),
    ],
)  # fmt: skip
def test_others_are_refused_in_words(tiny, tmp_path, name, match, changes) -> None:
    kind = KINDS[name]
    backbone = kind.make(tiny, tmp_path)
    (key,) = backbone.text_encoders
    parts = {
        "vae": backbone.vae,
        "text_encoder": backbone.text_encoders[key],
        "transformer": backbone.unet,
        **{part: make(tiny) for part, make in changes.items()},
    }
    pipeline = kind.pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), tokenizer=backbone.tokenizers[key], **parts
    )
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=match):
        load_backbone(tmp_path / "model")


def test_the_larger_klein_is_told_by_its_width() -> None:
    from magicapture.backbones.support import family_of

    config = {
        "timestep_guidance_channels": 256,
        "joint_attention_dim": 12288,
        "guidance_embeds": False,
        "in_channels": 128,
        "num_attention_heads": 32,
        "attention_head_dim": 128,
    }
    assert family_of(config, {"latent_channels": 32}, [4096]) == "flux2_klein_9b"
    smaller = {**config, "joint_attention_dim": 7680, "num_attention_heads": 24}
    assert family_of(smaller, {"latent_channels": 32}, [2560]) == "flux2_klein_4b"
