"""Families of joint attention trained, saved, read again and drawn with, here and by diffusers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from magicapture.adapters import load_adapter, save_adapter
from magicapture.backbones import DiffusersBackbone
from magicapture.config import Rates
from magicapture.errors import InputError
from magicapture.families import FAMILIES
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.tokens import Prompt
from magicapture.training.optim import CLIP_SIZE, token_factors
from tests.core._families import KINDS, Kind
from tests.core.joint import PHRASES, spelled, trained_by_every_loss

SAMPLING = SamplingSettings(steps=2, width=128, height=128)
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def backbone(kind: Kind, tiny: SimpleNamespace, tmp_path: Path) -> DiffusersBackbone:
    return kind.make(tiny, tmp_path / "words")


@pytest.fixture
def trained(kind, backbone, make_job, recipe, embedder, tmp_path) -> Any:
    """An adapter of every loss, and the folder of its files; the base model is as it was."""
    first, last = recipe.phases
    last = replace(last, steps=12, rates=Rates(tokens=1e-3, unet=1e-2, text_encoder=1e-2))
    job = make_job(phases=(first, last))
    adapter, heard = trained_by_every_loss(
        job if kind.vectors else spelled(job), backbone, embedder
    )
    assert not [text for text in heard if "learns no vectors" in text]
    save_adapter(adapter, tmp_path, tmp_path, "joint")
    return adapter, tmp_path


def test_what_is_saved_draws_the_same_here_and_in_diffusers(
    kind, trained, backbone, tmp_path
) -> None:
    """A LoRA under diffusers' names, and vectors where they are learned."""
    adapter, folder = trained
    assert adapter.family == kind.family
    assert all(weights.up.any() for weights in adapter.lora.values())
    names = load_file(folder / "joint.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"transformer"}  # never the text encoder's
    files = {file.stem for file in folder.glob("*.safetensors")}
    assert files == {"joint", *(("ada-1", "oil-1") if kind.vectors else ())}
    for token in adapter.tokens:
        file = load_file(folder / f"{token}.safetensors")
        assert {key: values.shape[1] for key, values in file.items()} == kind.vectors
    again = load_adapter(folder / "joint.safetensors", [folder])
    assert again.family == kind.family and again.concepts == adapter.concepts
    with adapted(backbone, adapter):
        own = sample(backbone, PROMPT, adapter.vectors(), SAMPLING)
    with adapted(backbone, again):
        drawn = sample(backbone, PROMPT, again.vectors(), SAMPLING)
    torch.testing.assert_close(drawn, own, rtol=0, atol=1e-4)
    without = sample(backbone, PROMPT, adapter.vectors(), SAMPLING)
    assert (without - own).abs().max() > 1e-3

    (key,) = backbone.text_encoders
    pipeline = kind.pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=backbone.vae,
        text_encoder=deepcopy(backbone.text_encoders[key]),
        tokenizer=deepcopy(backbone.tokenizers[key]),
        transformer=deepcopy(backbone.unet),
    )
    pipeline.load_lora_weights(folder / "joint.safetensors")
    spelled = PROMPT
    for token, phrase in PHRASES.items():
        if kind.vectors:
            vectors = load_file(folder / f"{token}.safetensors")[key]
            pipeline.load_textual_inversion(vectors, token=f"<{token}>")
        else:
            spelled = spelled.replace(f"<{token}>", phrase)
    with torch.no_grad(), adapted(backbone, adapter):
        told = backbone.encode_prompts([Prompt(PROMPT)], adapter.vectors())
        noisy, level = torch.randn(1, kind.channels, 4 * kind.cell, 6 * kind.cell), 0.7
        expected = backbone.predict(noisy, torch.tensor([level]), told)
        length = told.context.shape[1]
        found = pipeline.encode_prompt(spelled, max_sequence_length=length)
        torch.testing.assert_close(told.context, found[0], rtol=1e-4, atol=1e-4)
        twin = deepcopy(backbone)
    twin._unet = pipeline.transformer
    with torch.no_grad():
        theirs = twin.predict(noisy, torch.tensor([level]), told)
    torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-3)


def test_t5_alone_learns_at_a_rate_in_proportion_to_clips_usual_size(tiny, tmp_path) -> None:
    backbone = KINDS["chroma"].make(tiny, tmp_path)
    size = backbone.word_vectors("t5xxl", "woman").square().mean().sqrt()
    factors = token_factors(backbone, ["woman"])
    assert factors == {"tokens.t5xxl": pytest.approx(float(size) / CLIP_SIZE)}


def test_files_of_other_programs_are_told_by_layers_and_width(tmp_path) -> None:
    """What Flux.1 and Chroma have alike counts as Flux.1's, unless the file says more."""

    def file(layer: str, width: int, metadata: dict[str, str] | None = None) -> Path:
        tensors = {
            f"transformer.{layer}.lora_A.weight": torch.ones(2, width),
            f"transformer.{layer}.lora_B.weight": torch.ones(8, 2),
        }
        save_file(tensors, tmp_path / "a.safetensors", metadata)
        return tmp_path / "a.safetensors"

    fused = "single_transformer_blocks.3.attn.to_qkv_mlp_proj"
    assert load_adapter(file(fused, 3072)).family == "flux2_klein_4b"
    assert load_adapter(file(fused, 4096)).family == "flux2_klein_9b"
    small = load_adapter(file("transformer_blocks.0.ff_context.linear_in", 3072))
    assert small.family == "flux2_klein_4b"
    assert list(small.lora) == ["transformer.transformer_blocks.0.ff_context.linear_in"]
    both = "single_transformer_blocks.3.attn.to_q"
    assert load_adapter(file(both, 3072)).family == "flux1"
    assert load_adapter(file(both, 3072, {"modelspec.architecture": "chroma"})).family == "chroma"
    name = FAMILIES["flux2_klein_4b"].base_version
    stated = load_adapter(file("transformer_blocks.0.attn.to_q", 3072, {
        "ss_base_model_version": name,
    }))  # fmt: skip
    assert stated.family == "flux2_klein_4b"
    with pytest.raises(InputError, match="HunyuanVideo"):
        load_adapter(file(fused, 6144))
