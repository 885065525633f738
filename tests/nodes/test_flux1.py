"""Flux.1 in ComfyUI: the same numbers as in diffusers, stock loaders, and a whole training."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.nodes._families import near, prompts, seeded
from tests.nodes.joint import check_stock_loaders, saved

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of <ada> woman"
LEVELS = (0.3, 0.8)


@pytest.fixture
def ours(pack, tiny_flux1) -> Any:
    return pack.comfy.ComfyBackbone(tiny_flux1.model, tiny_flux1.clip, tiny_flux1.vae)


@pytest.fixture
def theirs(pack, make, tiny_flux1, comfyui: Path) -> Any:
    """The diffusers backbone of the same weights."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    with torch.inference_mode(False), torch.no_grad():
        clip, t5 = (
            getattr(tiny_flux1.clip.cond_stage_model, key).transformer.state_dict()
            for key in ("clip_l", "t5xxl")
        )
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=32,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
        encoder = CLIPTextModel(config).eval()
        flat = not next(iter(encoder.state_dict())).startswith("text_model.")
        encoder.load_state_dict(
            {
                name: clip[f"text_model.{name}" if flat else name].clone()
                for name in encoder.state_dict()
            }
        )
        second = T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=48,
                d_kv=8,
                d_ff=96,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        ).eval()
        table = t5["shared.weight"]
        second.load_state_dict(
            {
                name: (table if name == "encoder.embed_tokens.weight" else t5[name]).clone()
                for name in second.state_dict()
            }
        )
        network = tiny_flux1.vae.first_stage_model
        halves = {
            "encoder": network.taesd_encoder.state_dict(),
            "decoder": network.taesd_decoder.state_dict(),
        }
        halves = {p: {k: v.clone() for k, v in of.items()} for p, of in halves.items()}
        texts = comfyui / "comfy"
        words = {
            "clip_l": CLIPTokenizer.from_pretrained(texts / "sd1_tokenizer"),
            "t5xxl": T5TokenizerFast.from_pretrained(texts / "text_encoders" / "t5_tokenizer"),
        }
        return pack("magicapture.backbones").DiffusersBackbone(
            unet=make.flux_twin(tiny_flux1.model),
            vae=pack("magicapture.backbones.taesd").taesd_from(halves),
            text_encoders={"clip_l": encoder, "t5xxl": second},
            tokenizers=words,
            schedule=pack("nodes._comfy.models").schedule_of(tiny_flux1.model),
        )


@pytest.fixture
def vectors(pack) -> Any:
    with torch.inference_mode(False):
        values = {"clip_l": 0.1 * seeded(2, 32), "t5xxl": 3 * seeded(2, 48, seed=1)}
        return pack("magicapture.tokens").TokenVectors({"ada": values})


def test_prompts_and_predictions_are_those_of_diffusers(pack, ours, theirs, vectors) -> None:
    assert ours.family == theirs.family == "flux1"
    assert ours.schedule.prediction == theirs.schedule.prediction == "flow"
    noisy, levels = seeded(2, 4, 8, 12, seed=2), torch.tensor(LEVELS)
    texts = prompts(pack, TEXT, "a person in the rain, smiling")
    with ours.training(None), theirs.training(None), torch.no_grad():
        own, other = (b.encode_prompts(texts, vectors) for b in (ours, theirs))
        near(own.context, other.context)
        near(own.extra["pooled"], other.extra["pooled"])
        assert own.positions == other.positions and own.positions[0]["ada"] != []
        for guidance in (None, torch.tensor([3.5, 1.0])):
            told = [
                c if guidance is None else replace(c, extra={**c.extra, "guidance": guidance})
                for c in (own, other)
            ]
            found = [b.predict(noisy, levels, c) for b, c in zip((ours, theirs), told, strict=True)]
            near(*found)
            if guidance is None:
                plain = found[0]
    assert not torch.allclose(plain[0], found[0][0]) and torch.allclose(plain[1], found[0][1])


def losses_and_gradients(pack, backbone, state, checkpointing: bool) -> SimpleNamespace:
    """Of reconstruction and refocusing together: at the vectors and at a LoRA in the network."""
    lora, attention = pack("magicapture.lora"), pack("magicapture.attention")
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as scope:
        vectors = pack("magicapture.tokens").TokenVectors(
            {"ada": {"clip_l": 0.1 * seeded(2, 32), "t5xxl": 3 * seeded(2, 48, seed=1)}}
        )
        noisy, target = seeded(2, 4, 8, 8, seed=2), seeded(2, 4, 8, 8, seed=3)
        scope.enter_context(backbone.training(None))
        blocks = list(backbone.checkpointed_modules()) if checkpointing else []
        assert len(blocks) == 4 * checkpointing
        injected = scope.enter_context(lora.injected(backbone.unet, list(state), 2))
        injected.load(state)
        scope.enter_context(pack("magicapture.checkpointing").checkpointed(blocks))
        told = backbone.encode_prompts(prompts(pack, TEXT, TEXT), vectors)
        capture = scope.enter_context(attention.captured(backbone.attention))
        with capture.recording():
            prediction = backbone.predict(noisy, torch.tensor(LEVELS), told)
        maps = capture.maps(told.positions, (8, 8))
        weight = torch.linspace(0, 1, 16).view(4, 4)
        held = torch.stack([(one.values * weight).square().sum() for one in maps]).sum()
        mse = (prediction - target).square().mean()
        (mse + 1000 * held).backward()
        pairs = zip(*[iter(injected.parameters())] * 2, strict=True)
        grads = {
            name: (down.grad, up.grad)
            for name, (down, up) in zip(injected.state(), pairs, strict=True)
        }
        of_vectors = {key: vectors.get("ada", key).grad for key in ("clip_l", "t5xxl")}
        return SimpleNamespace(losses=[mse.item(), held.item()], vectors=of_vectors, lora=grads)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_same_losses_and_gradients_as_in_diffusers(pack, ours, theirs, checkpointing) -> None:
    lora, layers = pack("magicapture.lora"), pack("magicapture.parts")
    parts = ours.parts_of(ours.unet)
    fused = {}
    named = layers.names_of(parts)
    for i, name in enumerate(lora.target_names(ours.unet, "all_linear", "transformer", named)):
        rows, columns = ours.unet.get_submodule(name).weight.shape
        down, up = (0.1 * seeded(*s, seed=i) for s in ((2, columns), (rows, 2)))
        fused[name] = lora.LoraWeights(down, up, 2.0)
    apart = {n: w for name, of in fused.items() for n, w in layers.split(of, parts[name]).items()}
    own = losses_and_gradients(pack, ours, fused, checkpointing)
    other = losses_and_gradients(pack, theirs, apart, checkpointing)
    assert own.losses == pytest.approx(other.losses, rel=1e-3)
    for key, gradient in own.vectors.items():
        near(gradient, other.vectors[key], 2e-3)
    for name, (down, up) in own.lora.items():
        near(down, sum(other.lora[part.name][0] for part in parts[name]), 2e-3)
        for part in parts[name]:
            near(up[part.rows or slice(None)], other.lora[part.name][1], 2e-3)


# -- stock nodes ------------------------------------------------------------------------------


@pytest.fixture
def adapter(pack, ours) -> Any:
    """An adapter with vectors of both encoders, its LoRA far from nothing."""
    lora, layers = pack("magicapture.lora"), pack("magicapture.parts")
    parts = ours.parts_of(ours.unet)
    names = lora.target_names(ours.unet, "all_linear", "transformer", layers.names_of(parts))
    found = {}
    for i, name in enumerate(names):
        rows, columns = ours.unet.get_submodule(name).weight.shape
        pair = 0.2 * seeded(2, columns, seed=i), 0.2 * seeded(rows, 2, seed=-i - 1)
        for part, of in layers.split(lora.LoraWeights(*pair, 2.0), parts[name]).items():
            found[f"transformer.{part}"] = of
    encoder = ours.text_encoders["clip_l"]
    known = {name: part.name for name, (part,) in ours.parts_of(encoder).items()}
    for name in lora.text_target_names(encoder):
        pair = 0.2 * seeded(2, 32, seed=5), 0.2 * seeded(32, 2, seed=6)
        found[f"clip_l.{known[name]}"] = lora.LoraWeights(*pair, 2.0)
    tokens = {"ada": {"clip_l": 0.3 * seeded(2, 32), "t5xxl": 3 * seeded(2, 48)}}
    return pack("magicapture.adapters").Adapter(found, tokens, "flux1")


@pytest.fixture
def file(pack, make, adapter):
    with saved(pack, make, adapter, "flux-test") as path:
        yield path


def test_stock_loaders_draw_what_apply_adapter_draws(
    pack, make, tiny_flux1, adapter, file, ksample, caplog
) -> None:
    assert load_file(make.embeddings / "ada.safetensors").keys() == {"clip_l", "t5xxl"}
    text = "a photo of embedding:ada woman"
    check_stock_loaders(pack, tiny_flux1, adapter, file, text, ksample, caplog)


def test_prompts_are_what_stock_nodes_encode(pack, ours, tiny_flux1, adapter, file) -> None:
    """The same words and vectors in the same columns, from the file and from Apply Adapter."""
    import nodes

    with ours.training(None), torch.no_grad():
        told = ours.encode_prompts(prompts(pack, TEXT), adapter.vectors())
    _, clip = pack.comfy.apply_adapter(tiny_flux1.model, tiny_flux1.clip, adapter, 0.0, 0.0)
    for one in (tiny_flux1.clip, clip):
        ((context, extra),) = nodes.CLIPTextEncode().encode(
            one, TEXT.replace("<ada>", "embedding:ada")
        )[0]
        near(told.context, context)
        near(told.extra["pooled"], extra["pooled_output"])


def test_a_layer_of_another_size_is_refused(pack, make, tiny_flux1, adapter) -> None:
    wider = replace(
        tiny_flux1,
        model=make.flux(context_in_dim=48, guidance_embed=True, hidden_size=64, num_heads=4),
    )
    with pytest.raises(pack("magicapture.errors").InputError, match="another kind of base model"):
        pack.comfy.apply_adapter(wider.model, wider.clip, adapter)


def test_other_families_are_refused_in_words(pack, make, tiny, tiny_flux1, tiny_xl, adapter):
    errors = pack("magicapture.errors")
    with pytest.raises(errors.InputError, match=r"Flux\.1"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)
    backbone = pack.comfy.ComfyBackbone
    with pytest.raises(errors.UnsupportedModelError, match="'clip' holds clip_l and clip_g"):
        backbone(tiny_flux1.model, tiny_xl.clip, tiny_flux1.vae)
    with pytest.raises(errors.UnsupportedModelError, match="'clip' holds clip_l and t5xxl"):
        backbone(tiny.model, tiny_flux1.clip, tiny.vae)
    wide = make.flux(context_in_dim=48, guidance_embed=True, in_channels=8)
    with pytest.raises(errors.UnsupportedModelError, match="inpainting or control"):
        backbone(wide, tiny_flux1.clip, tiny_flux1.vae)


def test_schnell_is_told_no_guidance(pack, make, tiny_flux1, vectors) -> None:
    quick = make.flux(context_in_dim=48, guidance_embed=False)
    backbone = pack.comfy.ComfyBackbone(quick, tiny_flux1.clip, tiny_flux1.vae)
    assert backbone.family == "flux1" and not quick.model.diffusion_model.params.guidance_embed
    with backbone.training(None), torch.no_grad():
        told = backbone.encode_prompts(prompts(pack, TEXT), vectors)
        assert backbone.predict(seeded(1, 4, 8, 8), torch.tensor([0.5]), told).isfinite().all()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict(keep_vars=True)


def test_a_training_moves_both_and_leaves_the_model_as_it_was(pack, ours) -> None:
    """Two phases, every loss; vectors of both encoders and CLIP's LoRA, never T5's."""
    config, training = pack("magicapture.config"), pack("magicapture.training")
    recipe = pack("magicapture.recipes").recipe("magicapture")
    recipe = pack("magicapture.recipes").with_steps(recipe, 6)
    first, last = recipe.phases
    last = replace(last, rates=config.Rates(tokens=1e-3, unet=1e-3, text_encoder=1e-3))
    recipe = replace(recipe, phases=(first, last), resolution=64)
    before = {part: state_of(m) for part, m in {"net": ours.unet, **ours.text_encoders}.items()}
    losses: set[str] = set()

    def listener(event: Any) -> None:
        if isinstance(event, training.Stepped):
            losses.update(event.losses)

    with torch.inference_mode(False):
        pair = pack("magicapture.paperdoll.pairs").make_pair(1_000_000, 1_000_099, poses=1)
        job = pack("magicapture.demo.example").doll_job(pair, recipe)
        subject, style = (  # CLIP knows the dolls' own names as words
            replace(one, concept=replace(one.concept, name=name, vectors=2))
            for one, name in ((job.subject, "ada-1"), (job.style, "oil-1"))
        )
        job = replace(job, subject=subject, style=style)
        embedder = pack("magicapture.paperdoll.readers").ConvEmbedder().eval()
        with training.Trainer.open(job, ours, embedder=embedder, listener=listener) as trainer:
            start = trainer.vectors.tensors()
            adapter = trainer.run()
    assert {"source", "style", "composed", "attention"} <= losses
    assert adapter.family == "flux1"
    assert {key.partition(".")[0] for key in adapter.lora} == {"transformer", "clip_l"}
    assert any(of.up.any() for of in adapter.lora.values())
    for name, of in adapter.tokens.items():
        for key, values in of.items():
            assert not torch.equal(values, start[name][key])
    after = {part: state_of(m) for part, m in {"net": ours.unet, **ours.text_encoders}.items()}
    for part, state in before.items():
        assert state.keys() == after[part].keys()
        assert all(value is after[part][name] for name, value in state.items())
