"""Stable Diffusion XL: ComfyUI's and diffusers' networks train alike, stock nodes draw alike."""

from __future__ import annotations

import logging
import zlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes._families import seeded

TEXT = "a photo of <ada> woman"


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def ours(pack, tiny_xl) -> Any:
    return pack.comfy.ComfyBackbone(tiny_xl.model, tiny_xl.clip, tiny_xl.vae)


@pytest.fixture
def theirs(pack, tiny_xl, comfyui) -> Any:
    """diffusers' and transformers' networks with the same weights."""
    import comfy.utils
    from diffusers import UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    with torch.inference_mode(False):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            layers_per_block=1,
            attention_head_dim=2,
            use_linear_projection=True,
            cross_attention_dim=80,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=48 + 6 * 256,
        ).eval()
        model = tiny_xl.model.model
        own = model.diffusion_model.state_dict()
        names = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
        unet.load_state_dict({name: own[names[name]].clone() for name in unet.state_dict()})
        encoders = {}
        for key, width, kind in (
            ("clip_l", 32, CLIPTextModel),
            ("clip_g", 48, CLIPTextModelWithProjection),
        ):
            config = CLIPTextConfig(
                vocab_size=49408,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=3,
                num_attention_heads=2,
                projection_dim=width,
                hidden_act="quick_gelu" if key == "clip_l" else "gelu",
                bos_token_id=49406,
                eos_token_id=49407,
            )
            encoder = kind(config).eval()
            state = getattr(tiny_xl.clip.cond_stage_model, key).transformer.state_dict()
            flat = not next(iter(encoder.state_dict())).startswith("text_model.")
            encoder.load_state_dict(
                {
                    name: state[f"text_model.{name}" if flat else name].clone()
                    for name in encoder.state_dict()
                }
            )
            encoders[key] = encoder
        taesd = pack("magicapture.backbones.taesd").taesd_from
        network = tiny_xl.vae.first_stage_model
        halves = {
            "encoder": network.taesd_encoder.state_dict(),
            "decoder": network.taesd_decoder.state_dict(),
        }
        halves = {p: {k: v.clone() for k, v in of.items()} for p, of in halves.items()}
        words = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer")
        return pack("magicapture.backbones").DiffusersBackbone(
            unet=unet,
            vae=taesd(halves),
            text_encoders=encoders,
            tokenizers=dict.fromkeys(encoders, words),
            schedule=pack("nodes._comfy.models").schedule_of(tiny_xl.model),
        )


def targets(pack, part: str, module: torch.nn.Module) -> list[str]:
    lora = pack("magicapture.lora")
    if part == "unet":
        return lora.target_names(module, "all_linear")
    return lora.text_target_names(module)


def weights(pack, module: torch.nn.Module, name: str, canonical: str) -> Any:
    """A LoRA of rank 2 that is the same wherever the layer is."""
    out, width = module.get_submodule(name).weight.shape
    seed = zlib.crc32(canonical.encode())
    pair = 0.2 * seeded(2, width, seed=seed), 0.2 * seeded(out, 2, seed=seed + 1)
    return pack("magicapture.lora").LoraWeights(*pair, 2.0)


def losses_and_gradients(pack, backbone) -> SimpleNamespace:
    """Of reconstruction and refocusing together: at the vectors and at a LoRA in every network."""
    lora, attention = pack("magicapture.lora"), pack("magicapture.attention")
    equations = pack("magicapture.losses.equations")
    tokens = pack("magicapture.tokens")
    with torch.inference_mode(False), torch.enable_grad():
        vectors = tokens.TokenVectors(
            {"ada": {"clip_l": 0.1 * seeded(2, 32), "clip_g": 0.1 * seeded(2, 48, seed=1)}}
        )
        noisy, target = seeded(2, 4, 8, 8, seed=2), seeded(2, 4, 8, 8, seed=3)
        inside = torch.zeros(2, 1, 8, 8)
        inside[..., 2:6, 2:6] = 1
        found = SimpleNamespace(losses=[], gradients={})
        with backbone.training(None), ExitStack() as scope:
            parameters = {}
            for part, module in {"unet": backbone.unet, **backbone.text_encoders}.items():
                known = {name: part.name for name, (part,) in backbone.parts_of(module).items()}
                names = targets(pack, part, module)
                layers = scope.enter_context(lora.injected(module, names, 2))
                layers.load({name: weights(pack, module, name, known[name]) for name in names})
                pairs = zip(*[iter(layers.parameters())] * 2, strict=True)
                for name, pair in zip(names, pairs, strict=True):
                    parameters[f"{part}.{known[name]}"] = pair
            conditioning = backbone.encode_prompts([tokens.Prompt(TEXT)] * 2, vectors)
            capture = scope.enter_context(attention.captured(backbone.attention))
            with capture.recording():
                prediction = backbone.predict(noisy, torch.tensor([30, 700]), conditioning)
            maps = capture.maps(conditioning.positions, (8, 8))
            held = torch.stack([equations.refocusing(m.values, inside).mean() for m in maps])
            mse = (prediction - target).square().mean()
            (mse + held.mean()).backward()
            found.losses = [mse.item(), held.mean().item()]
            for key in ("clip_l", "clip_g"):
                found.gradients[key] = vectors.get("ada", key).grad
            for name, (down, up) in parameters.items():
                found.gradients[f"{name} down"], found.gradients[f"{name} up"] = down.grad, up.grad
    return found


def test_the_same_losses_and_gradients_as_in_diffusers(pack, ours, theirs) -> None:
    own, other = (losses_and_gradients(pack, backbone) for backbone in (ours, theirs))
    assert own.losses == pytest.approx(other.losses, rel=1e-4)
    assert own.gradients.keys() == other.gradients.keys() and len(own.gradients) > 40
    never = {name for name in own.gradients if name.startswith("clip_l.") and ".layers.2." in name}
    assert never
    for name, gradient in own.gradients.items():
        expected = other.gradients[name]
        if name in never:  # XL reads clip_l's last layer but one
            assert gradient is None or gradient.norm() == 0
            continue
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * scale, msg=name)


# -- stock nodes ------------------------------------------------------------------------------


@pytest.fixture
def adapter(pack, ours) -> Any:
    """An adapter of every part, its LoRA far from nothing."""
    found = {}
    for part, module in {"unet": ours.unet, **ours.text_encoders}.items():
        known = {name: part.name for name, (part,) in ours.parts_of(module).items()}
        for name in targets(pack, part, module):
            found[f"{part}.{known[name]}"] = weights(pack, module, name, known[name])
    tokens = {"ada": {"clip_l": 0.3 * seeded(2, 32), "clip_g": 0.3 * seeded(2, 48)}}
    return pack("magicapture.adapters").Adapter(found, tokens, "sdxl")


@pytest.fixture
def files(pack, make, adapter):
    """The adapter's files where stock loaders look."""

    import folder_paths

    loras = Path(folder_paths.get_folder_paths("loras")[0])
    (make.embeddings / "ada.safetensors").unlink(missing_ok=True)  # of other tests
    saved = pack("magicapture.adapters").save_adapter(adapter, loras, make.embeddings, "xl-test")
    yield saved
    (loras / "xl-test.safetensors").unlink()
    (make.embeddings / "ada.safetensors").unlink()


def test_stock_loaders_draw_what_apply_adapter_draws(
    pack, make, tiny_xl, adapter, files, ksample, caplog
) -> None:
    import nodes

    text = "a photo of embedding:ada woman"
    plain = ksample(tiny_xl, text)
    model, clip = pack.comfy.apply_adapter(tiny_xl.model, tiny_xl.clip, adapter)
    own = ksample(replace(tiny_xl, model=model, clip=clip), text)
    assert load_file(make.embeddings / "ada.safetensors").keys() == {"clip_l", "clip_g"}
    with caplog.at_level(logging.WARNING):
        model, clip = nodes.LoraLoader().load_lora(
            tiny_xl.model, tiny_xl.clip, "xl-test.safetensors", 1.0, 1.0
        )
        stock = ksample(replace(tiny_xl, model=model, clip=clip), text)
    assert not [r for r in caplog.records if "lora" in r.getMessage().lower()]
    assert torch.equal(stock, own)
    assert (own - plain).abs().max() > 1e-2


def test_other_families_are_refused_in_words(pack, tiny, tiny_xl, make, adapter) -> None:
    input_error = pack("magicapture.errors").InputError
    unsupported = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(input_error, match="Stable Diffusion XL"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)
    small = type(adapter)({}, {"ada": {"clip_l": torch.randn(1, 32)}}, "sd1")
    with pytest.raises(input_error, match=r"Stable Diffusion 1\.x"):
        pack.comfy.apply_adapter(tiny_xl.model, tiny_xl.clip, small)
    with pytest.raises(unsupported, match=r"'clip' holds clip_l, .* reads clip_l and clip_g"):
        pack.comfy.ComfyBackbone(tiny_xl.model, tiny.clip, tiny_xl.vae)
    with pytest.raises(unsupported, match=r"'clip' holds clip_l and clip_g, .* reads clip_l"):
        pack.comfy.ComfyBackbone(tiny.model, tiny_xl.clip, tiny.vae)
