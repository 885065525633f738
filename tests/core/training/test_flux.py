"""Flux.1 is trained, saved, read again and drawn with, here and by diffusers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import load_file

from magicapture.adapters import load_adapter, save_adapter
from magicapture.config import Rates
from magicapture.errors import InputError
from magicapture.families import FAMILIES
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.tokens import Prompt
from magicapture.training import Stepped, Trainer
from magicapture.training.optim import token_factors, token_groups

SAMPLING = SamplingSettings(steps=2, width=128, height=128)
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"


@pytest.fixture
def trained(make_job, recipe, flux_backbone, embedder, tmp_path):
    """An adapter with every part, and the losses seen on the way."""
    first, last = recipe.phases
    last = replace(last, steps=10, rates=Rates(tokens=1e-3, unet=1e-2, text_encoder=1e-2))
    job, seen = make_job(phases=(first, last)), set()

    def listener(event) -> None:
        if isinstance(event, Stepped):
            seen.update(event.losses)

    before = {name: value.clone() for name, value in flux_backbone.unet.state_dict().items()}
    with Trainer.open(job, flux_backbone, embedder=embedder, listener=listener) as trainer:
        adapter = trainer.run()
    after = flux_backbone.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert seen == {"source", "style", "composed", "attention", "identity"}
    save_adapter(adapter, tmp_path, tmp_path, "flux")
    return adapter, tmp_path


def test_vectors_of_both_encoders_and_a_lora_in_diffusers_names(trained) -> None:
    adapter, folder = trained
    assert adapter.family == "flux1"
    shapes = {"clip_l": (2, 32), "t5xxl": (2, 48)}
    assert {e: tuple(v.shape) for e, v in adapter.tokens["oil-1"].items()} == shapes
    file = load_file(folder / "oil-1.safetensors")
    assert {name: tuple(value.shape) for name, value in file.items()} == shapes
    assert all(w.up.abs().sum() > 0 for w in adapter.lora.values())
    parts = {name.split(".")[0] for name in load_file(folder / "flux.safetensors")}
    assert parts == {"transformer", "text_encoder"}  # CLIP's, never T5's


def test_what_is_saved_draws_the_same_here_and_in_diffusers(
    trained, flux_backbone, tokenizer, tiny, tmp_path
) -> None:
    adapter, folder = trained
    with adapted(flux_backbone, adapter):
        own = sample(flux_backbone, PROMPT, adapter.vectors(), SAMPLING)
    again = load_adapter(folder / "flux.safetensors", [folder])
    with adapted(flux_backbone, again):
        drawn = sample(flux_backbone, PROMPT, again.vectors(), SAMPLING)
    torch.testing.assert_close(drawn, own, rtol=0, atol=1e-4)
    without = sample(flux_backbone, PROMPT, adapter.vectors(), SAMPLING)
    assert (without - own).abs().max() > 1e-3

    words = deepcopy(tokenizer)
    second = tiny.t5_tokenizer(tmp_path / "words")
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux_backbone.vae,
        text_encoder=deepcopy(flux_backbone.text_encoders["clip_l"]),
        tokenizer=words,
        text_encoder_2=deepcopy(flux_backbone.text_encoders["t5xxl"]),
        tokenizer_2=second,
        transformer=deepcopy(flux_backbone.unet),
    )
    pipeline.load_lora_weights(folder / "flux.safetensors")
    for token in ("ada-1", "oil-1"):
        file = load_file(folder / f"{token}.safetensors")
        for key, known, encoder in (
            ("clip_l", words, pipeline.text_encoder),
            ("t5xxl", second, pipeline.text_encoder_2),
        ):
            pipeline.load_textual_inversion(
                file[key], token=f"<{token}>", tokenizer=known, text_encoder=encoder
            )
    with torch.no_grad(), adapted(flux_backbone, adapter):
        told = flux_backbone.encode_prompts([Prompt(PROMPT)], adapter.vectors())
        context, pooled, _ = pipeline.encode_prompt(PROMPT, None, max_sequence_length=256)
        torch.testing.assert_close(told.context, context, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(told.extra["pooled"], pooled, rtol=1e-4, atol=1e-4)
        noisy, level = torch.randn(1, 4, 16, 16), torch.tensor([0.7])
        expected = flux_backbone.predict(noisy, level, told)
        theirs = DiffusersTwin(flux_backbone, pipeline.transformer)(noisy, level, told)
    torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-3)


class DiffusersTwin:
    """The backbone's pass with another transformer."""

    def __init__(self, backbone, transformer) -> None:
        self._twin = deepcopy(backbone)
        self._twin._unet = transformer

    def __call__(self, *args):
        return self._twin.predict(*args)


def test_vectors_learn_at_rates_in_proportion_to_their_words(flux_backbone, make_job) -> None:
    job = make_job()
    t5 = flux_backbone.text_encoders["t5xxl"]
    with torch.no_grad():
        t5.encoder.embed_tokens.weight *= 300
    words = [concept.class_word for concept in job.concepts]
    sizes = {
        key: torch.cat([flux_backbone.word_vectors(key, word) for word in words]).norm()
        / sum(flux_backbone.word_vectors(key, word).numel() for word in words) ** 0.5
        for key in ("clip_l", "t5xxl")
    }
    factors = token_factors(flux_backbone, words)
    assert factors == {"tokens.t5xxl": pytest.approx(float(sizes["t5xxl"] / sizes["clip_l"]))}
    with Trainer.open(job, flux_backbone) as trainer:
        groups = token_groups(trainer.vectors, FAMILIES["flux1"])
        start = {name: [p.detach().clone() for p in of] for name, of in groups.items()}
        trainer.run()
    moved = {
        name: float(
            torch.stack([(a - b).abs().mean() for a, b in zip(of, start[name], strict=True)]).mean()
        )
        for name, of in groups.items()
    }
    assert moved["tokens.t5xxl"] / moved["tokens"] == pytest.approx(
        factors["tokens.t5xxl"], rel=0.5
    )


def test_a_side_that_is_no_whole_places_is_refused(make_job, flux_backbone) -> None:
    with (
        pytest.raises(InputError, match="multiples of 16 px"),
        Trainer.open(make_job(resolution=120), flux_backbone),
    ):
        pass
