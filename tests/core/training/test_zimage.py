"""Z-Image is trained by phrases, saved, read again and drawn with, here and by diffusers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from safetensors.torch import load_file

from magicapture.adapters import Adapter, load_adapter, save_adapter
from magicapture.attention import blocks
from magicapture.config import Rates, RefocusSettings
from magicapture.errors import InputError
from magicapture.lora import LoraWeights
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.tokens import Concept, Prompt
from magicapture.training import Trainer, Warned
from tests.core.joint import spelled, trained_by_every_loss

SAMPLING = SamplingSettings(steps=2, width=128, height=128)
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"
SPELLED = "a photo of ada lovel woman in the sfumat style"


@pytest.fixture
def job(make_job, recipe):
    """Phrases for both; the last phase at rates that move much in a few steps."""
    first, last = recipe.phases
    last = replace(last, steps=10, rates=Rates(tokens=1e-3, unet=1e-2, text_encoder=1e-2))
    return spelled(make_job(phases=(first, last)))


@pytest.fixture
def trained(job, zimage_backbone, embedder, tmp_path):
    """An adapter, and the folder of its file; the base model is as it was."""
    adapter, _ = trained_by_every_loss(job, zimage_backbone, embedder)
    save_adapter(adapter, tmp_path, tmp_path, "zimage")
    return adapter, tmp_path


def test_a_lora_under_diffusers_names_and_no_embedding(trained) -> None:
    adapter, folder = trained
    assert adapter.family == "zimage" and adapter.tokens == {}
    assert all(weights.up.any() for weights in adapter.lora.values())
    names = load_file(folder / "zimage.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"transformer"}  # never Qwen's
    assert "transformer.layers.0.attention.to_q.lora_A.weight" in names
    assert [file.name for file in folder.glob("*.safetensors")] == ["zimage.safetensors"]
    again = load_adapter(folder / "zimage.safetensors", [folder])
    assert again.family == "zimage" and again.concepts == adapter.concepts


def test_what_is_saved_draws_the_same_here_and_in_diffusers(trained, zimage_backbone) -> None:
    adapter, folder = trained
    with adapted(zimage_backbone, adapter):
        own = sample(zimage_backbone, PROMPT, adapter.vectors(), SAMPLING)
        plain = sample(zimage_backbone, SPELLED, settings=SAMPLING)
    assert torch.equal(own, plain)
    again = load_adapter(folder / "zimage.safetensors", [folder])
    with adapted(zimage_backbone, again):
        drawn = sample(zimage_backbone, PROMPT, again.vectors(), SAMPLING)
    torch.testing.assert_close(drawn, own, rtol=0, atol=1e-4)
    without = sample(zimage_backbone, PROMPT, adapter.vectors(), SAMPLING)
    assert (without - own).abs().max() > 1e-3

    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=zimage_backbone.vae,
        text_encoder=zimage_backbone.text_encoders["qwen3_4b"],
        tokenizer=zimage_backbone.tokenizers["qwen3_4b"],
        transformer=deepcopy(zimage_backbone.unet),
    )
    pipeline.load_lora_weights(folder / "zimage.safetensors")
    noise = torch.randn(1, 4, 16, 16)
    level = torch.tensor([0.75])
    seen = []
    hook = pipeline.transformer.register_forward_hook(lambda *given: seen.append(given[-1]))
    pipeline(SPELLED, height=128, width=128, num_inference_steps=2, guidance_scale=0,
             sigmas=[0.5, 0.25], latents=noise, output_type="latent")  # fmt: skip
    hook.remove()
    with adapted(zimage_backbone, adapter), torch.no_grad():
        told = zimage_backbone.encode_prompts([Prompt(PROMPT)], adapter.vectors())
        expected = zimage_backbone.predict(noise, level, told)
    (theirs,) = seen[0][0]  # shifted, the first step's level is 3 * 0.5 / (1 + 2 * 0.5)
    torch.testing.assert_close(-theirs[:, 0], expected[0], rtol=1e-3, atol=1e-3)


def test_vectors_that_are_asked_for_become_words(make_job, zimage_backbone) -> None:
    """A recipe's two phases then train the LoRA throughout, and a warning says so."""
    told = []
    job = make_job()
    assert all(concept.vectors for concept in job.concepts)

    def listener(event) -> None:
        if isinstance(event, Warned):
            told.append(event.text)

    with Trainer.open(job, zimage_backbone, listener=listener) as trainer:
        assert not list(trainer.vectors.parameters())
        assert [concept.vectors for concept in trainer.job.concepts] == [0, 0]
        assert all(phase.rates.unet and not phase.rates.tokens for phase in trainer.recipe.phases)
        line = zimage_backbone.layout("qwen3_4b", Prompt("<ada-1> woman"), trainer.vectors)
    said = zimage_backbone.tokenizers["qwen3_4b"].decode(line.ids)
    assert "user\nada-1 woman<|im_end|>" in said
    (warning,) = (text for text in told if "<ada-1>" in text)
    assert "Z-Image learns no vectors" in warning and "'ada-1'" in warning
    assert "give it a phrase" in warning


def test_the_layers_that_look_at_the_faces_are_measured(make_job, zimage_backbone) -> None:
    refocus = RefocusSettings(blocks="auto")
    with Trainer.open(make_job(refocus=refocus), zimage_backbone) as trainer:
        found = trainer.blocks
        trainer.run()
    assert set(blocks(zimage_backbone.unet)) == {f"layers.{i}" for i in range(4)}
    assert len(found) == 1 and set(found) <= set(blocks(zimage_backbone.unet))


def test_a_name_that_is_the_class_word_is_no_phrase(make_job, zimage_backbone) -> None:
    job = make_job()
    concept = Concept("Woman", "subject", "woman")
    job = replace(job, subject=replace(job.subject, concept=concept))
    with (
        pytest.raises(InputError, match="its class word 'woman'"),
        Trainer.open(job, zimage_backbone),
    ):
        pass


def test_files_of_other_programs_are_told_by_their_width(tmp_path) -> None:
    from safetensors.torch import save_file

    def file(name: str, prefix: str, width: int):
        layer = f"{prefix}layers.3.attention.to_k"
        tensors = {
            f"{layer}.lora_A.weight": torch.ones(2, width),
            f"{layer}.lora_B.weight": torch.ones(8, 2),
        }
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    for prefix in ("transformer.", "diffusion_model.", ""):
        found = load_adapter(file("a.safetensors", prefix, 3840))
        assert found.family == "zimage"
        assert list(found.lora) == ["transformer.layers.3.attention.to_k"]
    with pytest.raises(InputError, match="Lumina"):
        load_adapter(file("b.safetensors", "diffusion_model.", 2304))


def test_an_adapter_fits_its_own_family_alone(zimage_backbone, flux_backbone) -> None:
    weights = {
        "transformer.layers.0.attention.to_q": LoraWeights(
            torch.ones(2, 32), torch.ones(32, 2), 2.0
        )
    }
    adapter = Adapter(weights, {}, "zimage")
    with (
        pytest.raises(InputError, match="for Z-Image and the base model is Flux"),
        adapted(flux_backbone, adapter),
    ):
        pass
    with adapted(zimage_backbone, adapter):
        pass
