"""Concepts that are spelled: what the model is told, what trains when, and what is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.adapters import load_adapter, save_adapter
from magicapture.backbone import Backbone
from magicapture.errors import InputError
from magicapture.prompts import as_embeddings
from magicapture.recipes import fitted
from magicapture.recipes import recipe as named_recipe
from magicapture.refocusing import foci
from magicapture.sampling import SamplingSettings, adapted
from magicapture.tokens import Phrase, Prompt, TokenVectors
from magicapture.training import Resumed, Stepped, Trainer, TrainingJob, Warned

PHRASES = {"ada-1": Phrase("ada lovel", "woman"), "oil-1": Phrase("sfumat", "style")}
PROMPT = "a photo of <ada-1> woman in the <oil-1> style"
SPELLED = "a photo of ada lovel woman in the sfumat style"


class Stop(Exception):  # noqa: N818
    """What a caller raises to cancel."""


def spelled(job: TrainingJob, subject: str | None = "ada lovel") -> TrainingJob:
    """The job with phrases in place of vectors."""

    def without(learnable: Any, phrase: str | None) -> Any:
        concept = replace(learnable.concept, vectors=0, phrase=phrase)
        return replace(learnable, concept=concept)

    return replace(job, subject=without(job.subject, subject), style=without(job.style, "sfumat"))


@pytest.fixture
def make_spelled(make_job: Callable[..., TrainingJob]) -> Callable[..., TrainingJob]:
    return lambda **changes: spelled(make_job(**changes))


def assert_same_lora(one: Any, other: Any) -> None:
    assert one.lora.keys() == other.lora.keys()
    for name, weights in one.lora.items():
        assert torch.equal(weights.down, other.lora[name].down)
        assert torch.equal(weights.up, other.lora[name].up)


# -- what the model is told -------------------------------------------------------------------


@torch.no_grad()
def test_the_context_is_that_of_the_spelled_text(backbone, tokenizer):
    ids = tokenizer(SPELLED, padding="max_length", return_tensors="pt").input_ids
    expected = backbone.text_encoders["clip_l"](ids).last_hidden_state
    told = backbone.encode_prompts([Prompt(PROMPT)], TokenVectors({}, PHRASES))
    assert torch.equal(told.context, expected)
    words = tokenizer.convert_ids_to_tokens(ids[0])
    said = {name: [words[column] for column in of] for name, of in told.positions[0].items()}
    ada, oil = (tokenizer.tokenize(text) for text in ("ada lovel woman", "sfumat style"))
    assert said == {"ada-1": ada, "oil-1": oil}


@torch.no_grad()
def test_xl_is_told_the_spelled_text_by_both_encoders(xl_backbone):
    told = xl_backbone.encode_prompts([Prompt(PROMPT)], TokenVectors({}, PHRASES))
    plain = xl_backbone.encode_prompts([Prompt(SPELLED)], TokenVectors({}))
    assert torch.equal(told.context, plain.context)
    assert torch.equal(told.extra["pooled"], plain.extra["pooled"])
    assert set(told.positions[0]) == {"ada-1", "oil-1"} and plain.positions == [{}]


@torch.no_grad()
def test_a_token_may_have_vectors_in_one_encoder_alone(xl_backbone):
    """XL's second, 48 wide; in the first, the word is spelled."""
    vectors = TokenVectors({"ada-1": {"clip_g": torch.randn(2, 48)}}, PHRASES)
    both = TokenVectors(
        {"ada-1": {"clip_g": vectors.get("ada-1", "clip_g"), "clip_l": torch.zeros(2, 32)}}, PHRASES
    )
    told, plain, learned = (
        xl_backbone.encode_prompts([Prompt(text)], of)
        for text, of in ((PROMPT, vectors), (SPELLED, TokenVectors({})), (PROMPT, both))
    )
    assert torch.equal(told.context[..., :32], plain.context[..., :32])
    assert torch.equal(told.context[..., 32:], learned.context[..., 32:])


@torch.no_grad()
def test_flux_is_told_the_spelled_text_and_its_columns_are_t5s(flux_backbone):
    told = flux_backbone.encode_prompts([Prompt(PROMPT)], TokenVectors({}, PHRASES))
    plain = flux_backbone.encode_prompts([Prompt(SPELLED)], TokenVectors({}))
    assert torch.equal(told.context, plain.context)
    assert torch.equal(told.extra["pooled"], plain.extra["pooled"])
    ids = flux_backbone.word_ids("t5xxl", SPELLED)
    for name, text in (("ada-1", "ada lovel woman"), ("oil-1", "sfumat style")):
        said = [ids[column] for column in told.positions[0][name]]
        assert said == flux_backbone.word_ids("t5xxl", text)


def test_refocusing_holds_the_phrases_columns(backbone, make_spelled):
    prompts = [Prompt(PROMPT)]
    vectors = TokenVectors({}, PHRASES)
    told = backbone.encode_prompts(prompts, vectors)
    (found,) = foci(backbone, prompts, told, vectors, make_spelled().concepts)
    assert {focus.name: focus.columns for focus in found} == {
        name: tuple(columns) for name, columns in told.positions[0].items()
    }
    woman = backbone.word_ids("clip_l", "a photo of ada lovel")
    assert found[0].word == (1 + len(woman),)


# -- what trains when -------------------------------------------------------------------------


def test_phase_one_learns_each_alone_by_the_lora(make_spelled, backbone, embedder):
    job, seen, told = make_spelled(), {}, []

    def listen(event):
        if isinstance(event, Stepped):
            told.append(set(event.losses))
            if event.step in (3, 7):
                seen[event.step] = trainer.adapter()

    with Trainer.open(job, backbone, embedder=embedder, listener=listen) as trainer:
        assert not list(trainer.vectors.parameters())
        trainer.run()
    assert all(losses == {"source", "style", "attention"} for losses in told[:3])
    every = {"source", "style", "composed", "attention", "identity"}
    assert set().union(*told[3:]) == every
    assert all(weights.up.any() for weights in seen[3].lora.values())
    assert any(
        not torch.equal(weights.up, seen[7].lora[name].up) for name, weights in seen[3].lora.items()
    )
    assert seen[7].tokens == {} and seen[7].names == ("ada-1", "oil-1")
    first, last = seen[7].recipe.phases
    assert first.rates.tokens == last.rates.tokens == 0
    assert first.rates.unet == last.rates.unet and not first.weights.identity


def test_beside_a_phrase_the_other_token_trains_its_vectors(make_job, backbone, embedder):
    job = spelled(make_job())
    job = replace(job, style=make_job().style)
    seen = []

    def listen(event):
        if isinstance(event, Stepped) and event.step == 3:
            seen.append(trainer.adapter())

    with Trainer.open(job, backbone, embedder=embedder, listener=listen) as trainer:
        start = trainer.adapter()
        trainer.run()
    assert start.tokens.keys() == seen[0].tokens.keys() == {"oil-1"}
    before, after = (of.tokens["oil-1"]["clip_l"] for of in (start, seen[0]))
    assert len(after) == 2 and not torch.equal(before, after)
    assert all(weights.up.any() for weights in seen[0].lora.values())


def test_flux_learns_phrases_by_the_lora(make_spelled, flux_backbone, embedder):
    losses = []

    def listen(event):
        if isinstance(event, Stepped):
            losses.append(set(event.losses))

    with Trainer.open(make_spelled(), flux_backbone, embedder=embedder, listener=listen) as trainer:
        adapter = trainer.run()
    assert losses[0] == {"source", "style", "attention"} and adapter.tokens == {}
    assert adapter.family == "flux1" and any(of.up.any() for of in adapter.lora.values())


def test_the_default_recipe_for_phrases(make_spelled):
    """All but the first phase's LoRA, its attention loss and the vectors stays as it is."""
    recipe = fitted(named_recipe(), "sd1")
    first, last = replace(make_spelled(), recipe=recipe).fitted("sd1").recipe.phases
    rates = recipe.phases[1].rates
    assert (first.rates.tokens, first.rates.unet) == (0, rates.unet)
    assert dict(first.weights) == dict(recipe.phases[0].weights.changed(attention=0.02))
    assert last == replace(recipe.phases[1], rates=replace(rates, tokens=0))


def test_without_phrases_a_recipe_stays_as_it_is(make_job):
    job = make_job()
    assert job.fitted("sd1").recipe == job.recipe


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_cut_and_resumed_equals_the_uninterrupted_one(
    make_spelled, make_backbone, embedder, tmp_path: Path, at: int
):
    def run(folder: Path | None = None, stop_at: int = 0) -> tuple[Any, list[Any]]:
        events: list[Any] = []

        def listen(event):
            events.append(event)
            if isinstance(event, Stepped) and event.step == stop_at:
                raise Stop

        with Trainer.open(
            make_spelled(), make_backbone(), embedder=embedder, listener=listen, state_folder=folder
        ) as trainer:
            return trainer.run(), events

    whole, _ = run()
    with pytest.raises(Stop):
        run(tmp_path, at)
    resumed, events = run(tmp_path)
    assert Resumed(at, 7) in events
    assert_same_lora(whole, resumed)


def test_previews_show_where_a_phrase_looks(make_spelled, backbone, embedder):
    with Trainer.open(make_spelled(), backbone, embedder=embedder) as trainer:
        trainer.run()
        seen = trainer.preview(SamplingSettings(steps=2, width=64, height=64))
    assert {shown.token for shown in seen.token_maps} == {"ada-1", "oil-1"}
    assert seen.prompt == PROMPT


# -- what is left behind ----------------------------------------------------------------------


@pytest.fixture
def trained(make_spelled, make_backbone, embedder):
    with Trainer.open(make_spelled(), make_backbone(vae="kl"), embedder=embedder) as trainer:
        return trainer.run()


def test_a_lora_file_alone_is_saved_and_read(trained, tmp_path: Path):
    files = save_adapter(trained, tmp_path / "loras", tmp_path / "embeddings", "ada")
    assert files.embeddings == () and not (tmp_path / "embeddings").exists()
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["ada.safetensors"]
    again = load_adapter(files.lora)
    assert_same_lora(trained, again)
    assert again.concepts == trained.concepts and again.recipe == trained.recipe
    assert as_embeddings(again.prompt(), again.concepts) == SPELLED
    assert again.vectors().written("clip_l") == PHRASES


def test_diffusers_draws_the_same_of_the_file_and_the_plain_text(
    trained, make_backbone, tiny, tokenizer, tmp_path: Path
):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    def pipeline(backbone: Any) -> Any:
        return StableDiffusionPipeline(
            vae=backbone.vae,
            text_encoder=backbone.text_encoders["clip_l"],
            tokenizer=copy.deepcopy(tokenizer),
            unet=backbone.unet,
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "pt"}

    own = make_backbone(vae="kl")
    told = own.encode_prompts([Prompt(PROMPT)], trained.vectors()).context.detach()
    drawn = pipeline(own)
    plain = drawn(prompt_embeds=told, latents=latents.clone(), **settings).images
    with adapted(own, trained):
        ours = drawn(prompt_embeds=told, latents=latents.clone(), **settings).images

    stock = pipeline(make_backbone(vae="kl"))
    stock.load_lora_weights(save_adapter(trained, tmp_path, tmp_path, "ada").lora)
    theirs = stock(SPELLED, latents=latents.clone(), **settings).images
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - plain).abs().max() > 1e-2


# -- what is refused --------------------------------------------------------------------------


def refused(job: TrainingJob, backbone: Backbone, message: str) -> None:
    with pytest.raises(InputError, match=message), Trainer.open(job, backbone):
        pass


def test_one_phrase_for_both_is_refused(make_spelled, backbone):
    job = make_spelled()
    style = replace(job.style.concept, phrase="Ada Lovel")
    job = replace(job, style=replace(job.style, concept=style))
    refused(job, backbone, "same phrase, 'ada lovel'")


def test_a_recipe_without_a_lora_is_refused(make_spelled, backbone, recipe):
    job = make_spelled(phases=recipe.phases[:1])
    refused(job, backbone, r"'tiny' trains the tokens' vectors alone, and 'ada-1' has none")


def test_a_caption_that_says_the_other_phrase_is_refused(make_spelled, backbone):
    job = make_spelled()
    photos = job.subject.photos.known("captions", (None, "with a Sfumat look", None, None))
    job = replace(job, subject=replace(job.subject, photos=photos))
    refused(job, backbone, "its caption names 'sfumat', which is learned from other photos")


def warnings(job: TrainingJob, backbone: Backbone) -> list[str]:
    told: list[Any] = []
    with Trainer.open(job, backbone, listener=told.append):
        return [event.text for event in told if isinstance(event, Warned)]


def test_a_phrase_of_many_pieces_is_warned_about(make_job, backbone):
    job = spelled(make_job(), "a b c d e f g h i j k")
    assert any("into 11 pieces" in text for text in warnings(job, backbone))
    assert not any("pieces" in text for text in warnings(spelled(make_job()), backbone))


def test_a_phrase_beside_vectors_is_warned_about(make_job, backbone):
    job = make_job()
    subject = replace(job.subject.concept, phrase="ada lovel")
    job = replace(job, subject=replace(job.subject, concept=subject))
    assert any("'ada lovel' of <ada-1>" in text for text in warnings(job, backbone))


def test_a_name_that_is_a_word_may_be_a_phrase(make_job, backbone):
    """As a token it would be refused."""
    job = spelled(make_job(), "queen")
    subject = replace(job.subject.concept, name="queen")
    with Trainer.open(replace(job, subject=replace(job.subject, concept=subject)), backbone):
        pass


def test_a_caption_in_plain_words_names_the_subject(make_spelled, backbone):
    """It is used as it is, and its columns are the phrase's."""
    job = make_spelled()
    photos = job.subject.photos.known("captions", ("Ada Lovel woman at sea", None, None, None))
    job = replace(job, subject=replace(job.subject, photos=photos))
    with Trainer.open(job, backbone) as trainer:
        batches = trainer.materials.batches
        generator = torch.Generator().manual_seed(0)
        prompt = batches.prompt("source", "Ada Lovel woman at sea", generator)
        assert prompt.text == "<ada-1> woman at sea"
        told = backbone.encode_prompts([prompt], trainer.vectors)
    assert told.positions[0]["ada-1"][0] == 1
