"""kohya's form: keys, metadata, and the same picture through diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from magicapture.adapters import load_adapter, save_adapter, to_kohya
from magicapture.adapters.adapter import Adapter
from magicapture.lora import LoraWeights, applied, target_names, text_target_names


def test_keys_are_kohyas(adapter: Adapter) -> None:
    tensors = to_kohya(adapter, torch.float16)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    weights = adapter.lora["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"]
    assert tensors[f"{name}.lora_down.weight"].shape == (weights.rank, 32)
    assert tensors[f"{name}.lora_up.weight"].dtype == torch.float16
    assert tensors[f"{name}.alpha"].item() == weights.alpha
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.alpha" in tensors
    assert len(tensors) == 3 * len(adapter.lora)


def test_metadata_tells_what_other_tools_show(adapter: Adapter, tmp_path: Path) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").lora
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "2" and metadata["ss_network_alpha"] == "1.5"
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_v2"] == "False"
    assert metadata["ss_sd_model_name"] == "tiny.safetensors"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "portrait"
    assert metadata["modelspec.trigger_phrase"] == "ada, film"
    prompts = json.loads(metadata["magicapture.recipe"])["prompts"]
    assert prompts["composed"] == list(adapter.recipe.prompts.composed)


def test_diffusers_makes_the_same_of_it(
    adapter: Adapter,
    tmp_path: Path,
    pipeline: Any,
    outputs: Callable[..., Any],
) -> None:
    unet, encoder = pipeline.unet, pipeline.text_encoder
    plain = outputs(unet, encoder)
    text = {
        name.removeprefix("" if hasattr(encoder, "text_model") else "text_model."): weights
        for name, weights in adapter.part("clip_l").items()
    }
    with applied(unet, adapter.part("unet")), applied(encoder, text):
        ours = outputs(unet, encoder)
    pipeline.load_lora_weights(save_adapter(adapter, tmp_path, tmp_path, "portrait").lora)
    theirs = outputs(unet, encoder)
    # Both add the same two products to the same layer; only the order of sums may differ.
    for mine, other, before in zip(ours, theirs, plain, strict=True):
        assert (mine - other).abs().max() < 1e-5
        assert (mine - before).abs().max() > 1e-2


def test_diffusers_makes_the_same_of_xls_three_parts(tmp_path: Path, xl_pipeline: Any) -> None:
    """`lora_te1_` and `lora_te2_` reach their own encoder, and every layer of the UNet its own."""
    pipe = xl_pipeline
    models = {"unet": pipe.unet, "clip_l": pipe.text_encoder, "clip_g": pipe.text_encoder_2}
    lora, states = {}, {}
    for part, model in models.items():
        names = text_target_names(model) if part != "unet" else target_names(model, "all_linear")
        states[part] = {name: random_weights(model.get_submodule(name)) for name in names}
        for name, weights in states[part].items():
            full = f"text_model.{name}" if name.startswith("encoder.") else name
            lora[f"{part}.{full}"] = weights

    def put_out() -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(4)
        latent, context, pooled = (
            torch.randn(*s, generator=random) for s in ((1, 4, 16, 16), (1, 7, 64), (1, 32))
        )
        told = {"text_embeds": pooled, "time_ids": torch.full((1, 6), 128.0)}
        ids = torch.randint(0, 49406, (1, 77), generator=random)
        with torch.no_grad():
            prediction = pipe.unet(latent, 50, context, added_cond_kwargs=told).sample
            encoded = [pipe.text_encoder(ids), pipe.text_encoder_2(ids)]
        return [prediction, *(one.last_hidden_state for one in encoded)]

    plain = put_out()
    with ExitStack() as scope:
        for part, model in models.items():
            scope.enter_context(applied(model, states[part]))
        ours = put_out()
    file = save_adapter(Adapter(lora, {}, "sdxl"), tmp_path, tmp_path, "xl").lora
    pipe.load_lora_weights(file)
    for mine, other, before in zip(ours, put_out(), plain, strict=True):
        assert (mine - other).abs().max() < 1e-5
        assert (mine - before).abs().max() > 1e-2
    loaded = load_adapter(file)
    assert loaded.family == "sdxl" and loaded.lora.keys() == lora.keys()


def random_weights(layer: Any) -> LoraWeights:
    rows, columns = layer.weight.shape
    return LoraWeights(torch.randn(2, columns) / 4, torch.randn(rows, 2) / 4, 1.5)
