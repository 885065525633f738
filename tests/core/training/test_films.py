"""Qwen-Image and Krea 2 are trained by phrases, saved and drawn with, here and by diffusers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import Krea2Pipeline, QwenImagePipeline
from safetensors.torch import load_file, save_file

from magicapture.adapters import Adapter, load_adapter, save_adapter
from magicapture.backbones.passes import PASSES
from magicapture.config import Rates
from magicapture.errors import InputError
from magicapture.families import FAMILIES
from magicapture.lora import LoraWeights
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.tokens import Prompt
from tests.core.joint import spelled, trained_by_every_loss

SAMPLING = SamplingSettings(steps=2, width=128, height=128)
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"
SPELLED = "a photo of ada lovel woman in the sfumat style"


@pytest.fixture(params=["qwen_image", "krea2"])
def backbone(request):
    return request.getfixturevalue(f"{request.param}_backbone")


@pytest.fixture
def job(make_job, recipe):
    """Phrases for both; the last phase at rates that move much in a few steps."""
    first, last = recipe.phases
    last = replace(last, steps=10, rates=Rates(tokens=1e-3, unet=1e-2, text_encoder=1e-2))
    return spelled(make_job(phases=(first, last)))


@pytest.fixture
def trained(job, backbone, embedder, tmp_path):
    """An adapter, and the folder of its file; the base model is as it was."""
    adapter, _ = trained_by_every_loss(job, backbone, embedder)
    save_adapter(adapter, tmp_path, tmp_path, "film")
    return adapter, tmp_path


def test_it_is_saved_read_and_drawn_with_here_and_in_diffusers(trained, backbone) -> None:
    adapter, folder = trained
    assert adapter.family == backbone.family and adapter.tokens == {}
    assert all(weights.up.any() for weights in adapter.lora.values())
    names = load_file(folder / "film.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"transformer"}  # never Qwen2.5-VL's
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in names
    assert [file.name for file in folder.glob("*.safetensors")] == ["film.safetensors"]
    again = load_adapter(folder / "film.safetensors", [folder])
    assert again.family == backbone.family and again.concepts == adapter.concepts

    with adapted(backbone, adapter):
        own = sample(backbone, PROMPT, adapter.vectors(), SAMPLING)
        plain = sample(backbone, SPELLED, settings=SAMPLING)
    assert torch.equal(own, plain)
    with adapted(backbone, again):
        drawn = sample(backbone, PROMPT, again.vectors(), SAMPLING)
    torch.testing.assert_close(drawn, own, rtol=0, atol=1e-4)
    without = sample(backbone, PROMPT, adapter.vectors(), SAMPLING)
    assert (without - own).abs().max() > 1e-3

    # diffusers' loader of the same file, and its transformer, told the same.
    theirs = deepcopy(backbone.unet)
    kind = {"qwen_image": QwenImagePipeline, "krea2": Krea2Pipeline}[backbone.family]
    kind.load_lora_into_transformer(
        kind.lora_state_dict(folder / "film.safetensors"), transformer=theirs
    )
    noise, level = torch.randn(1, 4, 16, 16), torch.tensor([0.75])
    told = backbone.encode_prompts([Prompt(PROMPT)], adapter.vectors())
    with adapted(backbone, adapter), torch.no_grad():
        expected = backbone.predict(noise, level, told)
    with torch.no_grad():
        found = PASSES[backbone.family](theirs, noise, level, told, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


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


def test_files_of_other_programs_for_krea_2_are_told_by_their_width(tmp_path) -> None:
    """Some train its text's layers as well, which are as wide as the text."""
    layers = {
        "transformer_blocks.3.attn.to_gate": (6144, 6144),
        "transformer_blocks.3.ff.up": (16384, 6144),
        "text_fusion.refiner_blocks.1.attn.to_q": (2560, 2560),
        "text_fusion.layerwise_blocks.0.ff.gate": (6912, 2560),
    }
    for prefix in ("transformer.", "diffusion_model."):
        tensors = {}
        for name, (rows, columns) in layers.items():
            tensors[f"{prefix}{name}.lora_A.weight"] = torch.ones(2, columns)
            tensors[f"{prefix}{name}.lora_B.weight"] = torch.ones(rows, 2)
        save_file(tensors, tmp_path / "a.safetensors")
        found = load_adapter(tmp_path / "a.safetensors")
        assert found.family == "krea2"
        assert set(found.lora) == {f"transformer.{name}" for name in layers}


def test_an_adapter_fits_its_own_family_alone(backbone, flux_backbone) -> None:
    weights = LoraWeights(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    adapter = Adapter({"transformer.transformer_blocks.0.attn.to_q": weights}, {}, backbone.family)
    title = FAMILIES[backbone.family].title
    with (
        pytest.raises(InputError, match=f"for {title} and the base model is Flux"),
        adapted(flux_backbone, adapter),
    ):
        pass
