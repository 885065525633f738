"""The loop: what moves, what is restored, what repeats."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magicapture.config import LoraSettings, Phase, Rates, Weights
from magicapture.data import ReferenceSet
from magicapture.errors import (
    InputError,
    MagiCaptureError,
    NumericalError,
    OutOfMemoryError,
    StorageError,
)
from magicapture.recipes import RECIPE_NAMES, with_steps
from magicapture.recipes import recipe as named_recipe
from magicapture.sampling import SamplingSettings, adapted, sample
from magicapture.training import Prepared, Previewed, Resumed, Stepped, Trainer, Warned


class Stop(Exception):  # noqa: N818
    """What a caller raises to cancel."""


def snapshot(backbone):
    """Every tensor and flag of the models, and the kinds of their modules."""
    return {
        part: (
            {k: v.detach().clone() for k, v in module.state_dict().items()},
            {k: p.requires_grad for k, p in module.named_parameters()},
            {k: (type(m), m.training) for k, m in module.named_modules()},
        )
        for part, module in backbone.modules.items()
    }


def assert_unchanged(backbone, before):
    after = snapshot(backbone)
    for part, (tensors, flags, kinds) in before.items():
        assert after[part][1:] == (flags, kinds)
        assert after[part][0].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(after[part][0][key], tensor), (part, key)


def renamed(learnable, name):
    return replace(learnable, concept=replace(learnable.concept, name=name))


def lora_tensors(adapter):
    return {f"{k}.{s}": getattr(w, s) for k, w in adapter.lora.items() for s in ("down", "up")}


def assert_same_adapter(one, other, **tolerance):
    a, b = lora_tensors(one), lora_tensors(other)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **(tolerance or {"rtol": 0, "atol": 0}))
    for name in one.tokens:
        for encoder, vectors in one.tokens[name].items():
            torch.testing.assert_close(
                vectors, other.tokens[name][encoder], **(tolerance or {"rtol": 0, "atol": 0})
            )


def tensors(data):
    """Every tensor in nested dicts."""
    if torch.is_tensor(data):
        return [data]
    return [t for value in data.values() for t in tensors(value)] if isinstance(data, dict) else []


def train(job, backbone, **settings):
    events = []
    with Trainer.open(job, backbone, listener=events.append, **settings) as trainer:
        return trainer.run(), events


def test_phase_one_moves_the_tokens_alone_and_phase_two_both(make_job, backbone, embedder):
    before = snapshot(backbone)
    seen = {}

    def listen(event):
        if isinstance(event, Stepped) and event.step in (3, 7):
            seen[event.step] = trainer.adapter()

    with Trainer.open(make_job(), backbone, embedder=embedder, listener=listen) as trainer:
        start = trainer.adapter()
        trainer.run()
    assert not start.lora and not seen[3].lora
    assert all(weights.up.abs().max() > 0 for weights in seen[7].lora.values())
    assert all(".attn2." in name for name in seen[7].lora)
    for name in ("ada-1", "oil-1"):
        first, middle, last = (a.tokens[name]["clip_l"] for a in (start, seen[3], seen[7]))
        assert not torch.equal(first, middle) and not torch.equal(middle, last)
    assert_unchanged(backbone, before)


@pytest.mark.parametrize("at", [0, 2, 5])
def test_everything_is_restored_when_the_caller_stops_the_run(make_job, backbone, embedder, at):
    before = snapshot(backbone)

    def stop(event):
        step = event.step if isinstance(event, Stepped) else 0
        if step >= at and not isinstance(event, Warned):
            raise Stop

    with (
        pytest.raises(Stop),
        Trainer.open(make_job(), backbone, embedder=embedder, listener=stop) as trainer,
    ):
        trainer.run()
    assert_unchanged(backbone, before)
    assert not any(m._forward_hooks for part in backbone.modules.values() for m in part.modules())


def test_the_same_seed_gives_the_same_adapter(make_job, make_backbone, embedder):
    one, _ = train(make_job(), make_backbone(), embedder=embedder)
    two, _ = train(make_job(), make_backbone(), embedder=embedder)
    other, _ = train(make_job(seed=1), make_backbone(), embedder=embedder)
    assert_same_adapter(one, two)
    assert not torch.equal(one.tokens["ada-1"]["clip_l"], other.tokens["ada-1"]["clip_l"])


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_cut_and_resumed_equals_the_uninterrupted_one(
    make_job, make_backbone, embedder, tmp_path: Path, at: int
):
    whole, _ = train(make_job(), make_backbone(), embedder=embedder)

    def stop(event):
        if isinstance(event, Stepped) and event.step == at:
            raise Stop

    with (
        pytest.raises(Stop),
        Trainer.open(
            make_job(), make_backbone(), embedder=embedder, listener=stop, state_folder=tmp_path
        ) as trainer,
    ):
        trainer.run()
    resumed, events = train(make_job(), make_backbone(), embedder=embedder, state_folder=tmp_path)
    assert Resumed(at, 7) in events
    assert [e.step for e in events if isinstance(e, Stepped)] == list(range(at + 1, 8))
    assert_same_adapter(whole, resumed)


def test_eight_bit_adam_trains_and_resumes(make_job, make_backbone, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="the extra bnb is not installed")
    job = make_job(optimizer="adamw_8bit", lora=LoraSettings(rank=128))  # from 4,096 values on
    whole, _ = train(job, make_backbone())

    def stop(event):
        if isinstance(event, Stepped) and event.step == 5:
            raise Stop

    with (
        pytest.raises(Stop),
        Trainer.open(job, make_backbone(), listener=stop, state_folder=tmp_path) as trainer,
    ):
        trainer.run()
    state = trainer.keeper.load()
    assert torch.uint8 in {tensor.dtype for tensor in tensors(state["optimizer"]["state"])}
    resumed, _ = train(job, make_backbone(), state_folder=tmp_path)
    assert_same_adapter(whole, resumed)


def test_without_bitsandbytes_eight_bit_adam_says_what_to_do(make_job, backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with (
        pytest.raises(MagiCaptureError, match="needs the package bitsandbytes"),
        Trainer.open(make_job(optimizer="adamw_8bit"), backbone),
    ):
        pass


def test_a_run_stopped_within_a_step_resumes_exactly(
    make_job, make_backbone, embedder, tmp_path: Path
):
    whole, _ = train(make_job(), make_backbone(), embedder=embedder)
    backbone, passes = make_backbone(), 0

    def fail(*_):
        nonlocal passes
        passes += 1
        if passes == 6:  # the probe before step 1 is the first
            raise KeyboardInterrupt

    handle = backbone.unet.register_forward_pre_hook(fail)
    with (
        pytest.raises(KeyboardInterrupt),
        Trainer.open(make_job(), backbone, embedder=embedder, state_folder=tmp_path) as trainer,
    ):
        trainer.run()
    handle.remove()
    resumed, events = train(make_job(), backbone, embedder=embedder, state_folder=tmp_path)
    assert Resumed(4, 7) in events
    assert_same_adapter(whole, resumed)


def test_a_finished_run_answers_at_once_and_another_job_starts_over(
    make_job, make_backbone, embedder, tmp_path: Path
):
    settings = {"embedder": embedder, "state_folder": tmp_path}
    one, _ = train(make_job(), make_backbone(), **settings)
    again, events = train(make_job(), make_backbone(), **settings)
    assert not any(isinstance(e, Stepped) for e in events)
    assert_same_adapter(one, again)
    for job, extra in (
        (make_job(seed=1), {}),
        (make_job(flip=True), {}),
        (make_job(), {"fresh": True}),
    ):
        _, events = train(job, make_backbone(), **settings, **extra)
        assert not any(isinstance(e, Resumed) for e in events)
    _, events = train(make_job(), make_backbone(), state_folder=tmp_path)  # no face embedder
    assert not any(isinstance(e, Resumed) for e in events)


def test_previews_do_not_disturb_the_run(make_job, make_backbone, embedder):
    plain, _ = train(make_job(), make_backbone(), embedder=embedder)
    events = []
    settings = SamplingSettings(steps=2, width=128, height=128)
    with Trainer.open(make_job(), make_backbone(), embedder=embedder, listener=events.append) as t:
        shown = t.run(preview_every=3, preview=settings)
    previews = [e for e in events if isinstance(e, Previewed)]
    assert [e.step for e in previews] == [3, 6, 7]
    assert previews[0].images.shape == (1, 3, 128, 128)
    assert "<ada-1>" in previews[0].prompt and "<oil-1>" in previews[0].prompt
    assert_same_adapter(plain, shown)
    for preview in previews:
        assert preview.leakages.keys() == {"ada-1", "oil-1"}
        assert {one.token for one in preview.token_maps} == {"ada-1", "oil-1"}
        # The subject's region is the portraits' face, the style's the rest: they share the picture.
        ada, oil = (next(s for s in preview.token_maps if s.token == n) for n in ("ada-1", "oil-1"))
        assert torch.equal(ada.region, 1 - oil.region)
        assert 0 < ada.region.mean() < 0.5
    assert previews[0].leakages != previews[1].leakages


def test_the_last_preview_shows_what_was_learned(make_job, make_backbone, embedder, tmp_path):
    """At the end, and again where the run is found finished: as the adapter draws it."""
    settings = SamplingSettings(steps=2, width=128, height=128)
    backbone, last = make_backbone(), []
    for _ in range(2):
        events = []
        with Trainer.open(
            make_job(),
            backbone,
            embedder=embedder,
            state_folder=tmp_path,
            listener=events.append,
        ) as trainer:
            adapter = trainer.run(preview_every=100, preview=settings)
        shown = [event for event in events if isinstance(event, Previewed)]
        assert [event.step for event in shown] == [7]
        last.append(shown[0].images)
    with adapted(backbone, adapter):
        drawn = sample(backbone, shown[0].prompt, adapter.vectors(), settings)
    bare = sample(backbone, shown[0].prompt, adapter.vectors(), settings)
    torch.testing.assert_close(last[0], last[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(last[0], drawn, atol=1e-4, rtol=0)
    assert (drawn - bare).abs().max() > 1e-3


def test_without_masks_a_preview_has_no_leakage(make_job, make_backbone):
    job = make_job(masked=False, phases=make_job().recipe.phases[:1])
    bare = ReferenceSet.of(job.style.photos.images)
    job = replace(job, style=replace(job.style, photos=bare))
    with Trainer.open(job, make_backbone()) as trainer:
        preview = trainer.preview(SamplingSettings(steps=2, width=128, height=128))
    assert preview.token_maps
    assert preview.leakages == {}


@pytest.mark.parametrize("changes", [{"batching": "in_turn"}, {"checkpointing": True}])
def test_less_memory_gives_the_same_result(make_job, make_backbone, embedder, changes):
    plain, _ = train(make_job(), make_backbone(), embedder=embedder)
    small, _ = train(make_job(**changes), make_backbone(), embedder=embedder)
    # Adam turns rounding of a near-zero gradient into a step of up to the learning rate, so the
    # losses, not the weights, are held to a tight bound.
    assert_same_adapter(plain, small, rtol=1e-2, atol=2e-3)


def test_every_loss_is_reported_and_falls(make_job, backbone, embedder, recipe):
    phases = (replace(recipe.phases[1], steps=40, schedule="constant"),)
    _, events = train(make_job(phases=phases), backbone, embedder=embedder)
    steps = [e for e in events if isinstance(e, Stepped)]
    assert {n for e in steps for n in e.losses} == {
        "source",
        "style",
        "composed",
        "identity",
        "attention",
    }
    assert all(math.isfinite(v) for e in steps for v in e.losses.values())
    identity = [e for e in steps if "identity" in e.losses]
    assert 8 < len(identity) < 32  # where t < T', half of the steps
    assert sum(e.total for e in steps[-10:]) < sum(e.total for e in steps[:10])


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_recipe_runs_in_the_same_loop(name, make_job, backbone, embedder, dino):
    recipe = with_steps(named_recipe(name), 4)
    tiny = make_job().recipe
    job = make_job(
        **{
            **{
                f: getattr(recipe, f)
                for f in ("name", "phases", "lora", "identity", "masked", "batching", "subject_is")
            },
            "refocus": replace(recipe.refocus, factors=tiny.refocus.factors),
            "prior": replace(recipe.prior, images=min(2, recipe.prior.images), steps=2),
        }
    )
    adapter, events = train(job, backbone, embedder=embedder, dino=dino)
    assert sum(isinstance(e, Stepped) for e in events) == 4
    trained = {key.split(".")[0] for key in adapter.lora}
    assert ("unet" in trained) == any(phase.rates.unet for phase in recipe.phases)
    assert ("clip_l" in trained) == any(phase.rates.text_encoder for phase in recipe.phases)


def test_a_recipe_without_a_rate_for_tokens_leaves_them(make_job, backbone):
    phases = (Phase("LoRA", 2, Rates(unet=1e-3), Weights(source=1, style=1, prior=1)),)
    events = []
    with Trainer.open(make_job(phases=phases), backbone, listener=events.append) as trainer:
        start = trainer.adapter().tokens["ada-1"]["clip_l"]
        adapter = trainer.run()
    assert torch.equal(adapter.tokens["ada-1"]["clip_l"], start)
    assert [e for e in events if isinstance(e, Prepared) and e.stage == "making class images"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_fp32_masters(make_job, backbone, embedder, precision):
    before = snapshot(backbone)
    adapter, _ = train(make_job(precision=precision), backbone, embedder=embedder)
    assert all(t.dtype == torch.float32 for t in lora_tensors(adapter).values())
    assert all(t.isfinite().all() for t in lora_tensors(adapter).values())
    assert_unchanged(backbone, before)


def test_without_an_embedder_the_run_says_so_and_goes_on(make_job, backbone):
    adapter, events = train(make_job(), backbone)
    assert any("face recognition model" in e.text for e in events if isinstance(e, Warned))
    assert adapter.lora


def test_nan_stops_the_run_before_it_spreads(make_job, backbone, embedder, tmp_path: Path):
    passes = 0

    def poison(module, inputs, output):
        nonlocal passes
        passes += 1
        if passes == 5:
            output.sample.mul_(math.nan)

    handle = backbone.unet.register_forward_hook(poison)
    with (
        pytest.raises(NumericalError, match="step 4"),
        Trainer.open(make_job(), backbone, embedder=embedder, state_folder=tmp_path) as trainer,
    ):
        trainer.run()
    handle.remove()
    kept = trainer.keeper.load()
    assert kept["step"] == 3
    assert all(v.isfinite().all() for of in kept["tokens"].values() for v in of.values())


def test_a_gradient_that_is_nan_stops_the_run_before_it_spreads(make_job, backbone):
    def poison(event):
        if isinstance(event, Stepped) and event.step == 2:
            trainer.vectors.get("ada-1", "clip_l").register_hook(
                lambda gradient: gradient * math.nan
            )

    with (
        pytest.raises(NumericalError, match="gradient's norm became nan at step 3"),
        Trainer.open(make_job(), backbone, listener=poison) as trainer,
    ):
        trainer.run()
    tokens = trainer.adapter().tokens
    assert all(v.isfinite().all() for of in tokens.values() for v in of.values())


def test_memory_that_runs_out_is_explained_and_the_run_goes_on(
    make_job, make_backbone, embedder, tmp_path: Path
):
    whole, _ = train(make_job(), make_backbone(), embedder=embedder)
    backbone, passes = make_backbone(), 0

    def run_out(*_):
        nonlocal passes
        passes += 1
        if passes == 6:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 20 GiB.")

    handle = backbone.unet.register_forward_pre_hook(run_out)
    with (
        pytest.raises(OutOfMemoryError, match=r"in_turn.*20 GiB"),
        Trainer.open(make_job(), backbone, embedder=embedder, state_folder=tmp_path) as trainer,
    ):
        trainer.run()
    handle.remove()
    small = make_job(batching="in_turn", checkpointing=True)
    assert small.fingerprint() == make_job().fingerprint() != make_job(flip=True).fingerprint()
    resumed, events = train(make_job(), backbone, embedder=embedder, state_folder=tmp_path)
    assert Resumed(4, 7) in events
    assert_same_adapter(whole, resumed)


def test_a_model_that_returns_nan_is_refused_before_step_one(make_job, backbone):
    def poison(module, inputs, output):
        output.sample.mul_(math.nan)

    handle = backbone.unet.register_forward_hook(poison)
    with (
        pytest.raises(NumericalError, match="before any training"),
        Trainer.open(make_job(), backbone),
    ):
        pass
    handle.remove()


def test_a_map_size_the_unet_lacks_is_refused_before_step_one(make_job, backbone, recipe):
    refocus = replace(recipe.refocus, factors=(16,))
    with (
        pytest.raises(InputError, match="latent cells"),
        Trainer.open(make_job(refocus=refocus), backbone),
    ):
        pass


def test_a_full_disk_is_told_before_step_one(make_job, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("magicapture.training.trainer.SPACE", 2**62)  # more than any disk has
    with (
        pytest.raises(StorageError, match="MiB free"),
        Trainer.open(make_job(), backbone, state_folder=tmp_path),
    ):
        pass


def test_one_name_for_both_tokens_is_refused(make_job, backbone):
    job = make_job()
    job = replace(job, style=renamed(job.style, "ada-1"))
    with pytest.raises(InputError, match="both called"), Trainer.open(job, backbone):
        pass


def test_a_word_of_the_text_encoder_is_refused_as_a_name(make_job, backbone):
    job = make_job()
    job = replace(job, subject=renamed(job.subject, "woman"))
    with pytest.raises(InputError, match=r"already a word.*'woman-1'"), Trainer.open(job, backbone):
        pass
