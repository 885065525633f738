"""Stable Diffusion XL is trained, saved, read again and drawn with, here and by diffusers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file

from magicapture.adapters import load_adapter, save_adapter
from magicapture.backbones.support import BETAS
from magicapture.config import Rates
from magicapture.errors import MagiCaptureError
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.training import Trainer

SAMPLING = SamplingSettings(steps=2, width=128, height=128)
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"


@pytest.fixture
def trained(make_job, recipe, xl_backbone, embedder, tmp_path):
    """An adapter with every part: vectors of both encoders, LoRAs of all three networks."""
    first, last = recipe.phases
    last = replace(last, rates=Rates(tokens=1e-3, unet=1e-2, text_encoder=1e-2))
    job = make_job(phases=(first, last))
    with Trainer.open(job, xl_backbone, embedder=embedder) as trainer:
        adapter = trainer.run()
    save_adapter(adapter, tmp_path, tmp_path, "xl")
    return adapter, tmp_path


def test_both_encoders_learn_and_the_layer_that_never_acts_is_left_out(trained) -> None:
    adapter, folder = trained
    assert adapter.family == "sdxl"
    assert {e: v.shape for e, v in adapter.tokens["oil-1"].items()} == {
        "clip_l": (2, 32),
        "clip_g": (2, 48),
    }
    file = load_file(folder / "oil-1.safetensors")
    assert {name: value.shape for name, value in file.items()} == {
        "clip_l": (2, 32),
        "clip_g": (2, 48),
    }
    layers = {name.split(".layers.")[-1][0] for name in adapter.lora if name.startswith("clip_l.")}
    assert layers == {"0", "1"}
    assert all(w.up.abs().sum() > 0 for w in adapter.lora.values())
    parts = {name.split("_")[1] for name in load_file(folder / "xl.safetensors")}
    assert parts == {"unet", "te1", "te2"}


def test_what_is_saved_draws_the_same_here_and_in_diffusers(
    trained, xl_backbone, tokenizer
) -> None:
    adapter, folder = trained
    with adapted(xl_backbone, adapter):
        own = sample(xl_backbone, PROMPT, adapter.vectors(), SAMPLING)
    again = load_adapter(folder / "xl.safetensors", [folder])
    with adapted(xl_backbone, again):
        assert torch.equal(sample(xl_backbone, PROMPT, again.vectors(), SAMPLING), own)
    without = sample(xl_backbone, PROMPT, adapter.vectors(), SAMPLING)
    assert (without - own).abs().max() > 1e-4

    first, second = deepcopy(tokenizer), deepcopy(tokenizer)
    second.pad_token = "!"
    pipeline = StableDiffusionXLPipeline(
        vae=xl_backbone.vae,
        text_encoder=deepcopy(xl_backbone.text_encoders["clip_l"]),
        text_encoder_2=deepcopy(xl_backbone.text_encoders["clip_g"]),
        tokenizer=first,
        tokenizer_2=second,
        unet=deepcopy(xl_backbone.unet),
        scheduler=DDIMScheduler(**BETAS),
    )
    pipeline.load_lora_weights(folder / "xl.safetensors")
    for token in ("ada-1", "oil-1"):
        file = load_file(folder / f"{token}.safetensors")
        for key, words, encoder in (
            ("clip_l", first, pipeline.text_encoder),
            ("clip_g", second, pipeline.text_encoder_2),
        ):
            pipeline.load_textual_inversion(
                file[key], token=f"<{token}>", tokenizer=words, text_encoder=encoder
            )
    from magicapture.tokens import Prompt

    with torch.no_grad():
        with adapted(xl_backbone, adapter):
            ours = xl_backbone.encode_prompts([Prompt(PROMPT)], adapter.vectors())
            noisy, t = torch.randn(1, 4, 16, 16), torch.tensor([500])
            expected = xl_backbone.predict(noisy, t, ours)
        theirs = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        torch.testing.assert_close(theirs[0], ours.context, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs[2], ours.extra["pooled"], rtol=1e-4, atol=1e-4)
        told = {"text_embeds": theirs[2], "time_ids": torch.tensor([[128, 128, 0, 0, 128, 128.0]])}
        found = pipeline.unet(
            noisy, t, encoder_hidden_states=theirs[0], added_cond_kwargs=told
        ).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_family_is_refused_in_words(trained, backbone) -> None:
    adapter, _ = trained
    with pytest.raises(MagiCaptureError, match="Stable Diffusion XL"), adapted(backbone, adapter):
        pass
