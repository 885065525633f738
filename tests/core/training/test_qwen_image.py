"""Qwen-Image is trained by phrases, saved, read again and drawn with, here and by diffusers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from safetensors.torch import load_file, save_file

from magicapture.adapters import Adapter, load_adapter, save_adapter
from magicapture.config import Rates
from magicapture.errors import InputError
from magicapture.lora import LoraWeights
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.tokens import Prompt, TokenVectors
from magicapture.training import Stepped, Trainer

SAMPLING = SamplingSettings(steps=2, width=128, height=128)
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"
SPELLED = "a photo of ada lovel woman in the sfumat style"


@pytest.fixture
def job(make_job, recipe):
    """Phrases for both; the last phase at rates that move much in a few steps."""
    first, last = recipe.phases
    last = replace(last, steps=10, rates=Rates(tokens=1e-3, unet=1e-2, text_encoder=1e-2))
    made = make_job(phases=(first, last))
    words = {"ada-1": "ada lovel", "oil-1": "sfumat"}
    subject, style = (
        replace(of, concept=replace(of.concept, vectors=0, phrase=words[of.concept.name]))
        for of in made.learnables
    )
    return replace(made, subject=subject, style=style)


@pytest.fixture
def trained(job, qwen_image_backbone, embedder, tmp_path):
    """An adapter, and the folder of its file; the base model is as it was."""
    seen = set()

    def listener(event) -> None:
        if isinstance(event, Stepped):
            seen.update(event.losses)

    before = {
        part: {name: value.clone() for name, value in module.state_dict().items()}
        for part, module in qwen_image_backbone.modules.items()
    }
    with Trainer.open(job, qwen_image_backbone, embedder=embedder, listener=listener) as trainer:
        adapter = trainer.run()
    for part, module in qwen_image_backbone.modules.items():
        after = module.state_dict()
        assert before[part].keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before[part].items())
    assert seen == {"source", "style", "composed", "attention", "identity"}
    save_adapter(adapter, tmp_path, tmp_path, "qwen")
    return adapter, tmp_path


def test_it_is_saved_read_and_drawn_with_here_and_in_diffusers(
    trained, qwen_image_backbone
) -> None:
    adapter, folder = trained
    assert adapter.family == "qwen_image" and adapter.tokens == {}
    assert all(weights.up.any() for weights in adapter.lora.values())
    names = load_file(folder / "qwen.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"transformer"}  # never Qwen2.5-VL's
    assert "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight" in names
    assert [file.name for file in folder.glob("*.safetensors")] == ["qwen.safetensors"]
    again = load_adapter(folder / "qwen.safetensors", [folder])
    assert again.family == "qwen_image" and again.concepts == adapter.concepts

    with adapted(qwen_image_backbone, adapter):
        own = sample(qwen_image_backbone, PROMPT, adapter.vectors(), SAMPLING)
        plain = sample(qwen_image_backbone, SPELLED, settings=SAMPLING)
    assert torch.equal(own, plain)
    with adapted(qwen_image_backbone, again):
        drawn = sample(qwen_image_backbone, PROMPT, again.vectors(), SAMPLING)
    torch.testing.assert_close(drawn, own, rtol=0, atol=1e-4)
    without = sample(qwen_image_backbone, PROMPT, adapter.vectors(), SAMPLING)
    assert (without - own).abs().max() > 1e-3

    # diffusers' pipeline with the same file, told the same.
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=qwen_image_backbone.vae,
        text_encoder=None,
        tokenizer=qwen_image_backbone.tokenizers["qwen25_7b"],
        transformer=deepcopy(qwen_image_backbone.unet),
    )
    pipeline.load_lora_weights(folder / "qwen.safetensors")
    noise, level = torch.randn(1, 4, 16, 16), torch.tensor([0.75])
    with adapted(qwen_image_backbone, adapter), torch.no_grad():
        told = qwen_image_backbone.encode_prompts([Prompt(PROMPT)], adapter.vectors())
        expected = qwen_image_backbone.predict(noise, level, told)
        theirs = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noise, 1, 4, 16, 16),
            encoder_hidden_states=told.context,
            timestep=level,
            img_shapes=[[(1, 8, 8)]],
        ).sample
    theirs = pipeline._unpack_latents(theirs, 128, 128, 8)[:, :, 0]
    torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-3)


def test_files_of_other_programs_are_told_from_flux(tmp_path) -> None:
    """Both are 3072 wide: by their number of blocks, their layers' names, or metadata."""

    def found(layer: str, metadata: dict[str, str] | None = None) -> str:
        tensors = {
            f"{layer}.lora_A.weight": torch.ones(2, 3072),
            f"{layer}.lora_B.weight": torch.ones(3072, 2),
        }
        save_file(tensors, tmp_path / "a.safetensors", metadata)
        return load_adapter(tmp_path / "a.safetensors").family

    for prefix in ("transformer.", "diffusion_model.", ""):
        assert found(f"{prefix}transformer_blocks.59.attn.to_q") == "qwen_image"
        assert found(f"{prefix}transformer_blocks.0.txt_mlp.net.0.proj") == "qwen_image"
        assert found(f"{prefix}transformer_blocks.18.attn.to_q") == "flux1"
    assert found("transformer.single_transformer_blocks.37.attn.to_q") == "flux1"
    stated = {"modelspec.architecture": "Qwen-Image/lora"}
    assert found("transformer.transformer_blocks.3.attn.to_q", stated) == "qwen_image"


def test_an_adapter_fits_its_own_family_alone(qwen_image_backbone, flux_backbone) -> None:
    weights = LoraWeights(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    adapter = Adapter({"transformer.transformer_blocks.0.attn.to_q": weights}, {}, "qwen_image")
    with (
        pytest.raises(InputError, match="for Qwen-Image and the base model is Flux"),
        adapted(flux_backbone, adapter),
    ):
        pass
    with adapted(qwen_image_backbone, adapter), torch.no_grad():
        told = qwen_image_backbone.encode_prompts([Prompt("a")], TokenVectors({}))
        assert qwen_image_backbone.predict(torch.randn(1, 4, 8, 8), torch.ones(1), told).any()
