"""The nodes as the executor runs them, on a tiny Stable Diffusion."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SIDE = 64


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


def photos(count=3, size=(SIDE, SIDE), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *size, 3, generator=generator)


def face(size=(SIDE, SIDE)):
    mask = torch.zeros(1, *size)
    mask[:, size[0] // 4 : size[0] // 4 * 3, size[1] // 4 : size[1] // 4 * 3] = 1
    return mask


def references(nodes, pack, images=None, masks=None, captions=""):
    none = pack("nodes.references").NO_FOLDER
    images = [photos()] if images is None else images
    masks = [face().expand(len(batch), -1, -1) for batch in images] if masks is None else masks
    return nodes.LoadPhotoSet.execute([none], images, masks or None, [captions])[0]


def concepts(nodes, pack, subject="ada-1", style="oil-1", **kwargs):
    person = references(nodes, pack, **kwargs)
    portraits = references(nodes, pack, **{"images": [photos(seed=7)], **kwargs})
    return (
        nodes.DefineConcept.execute(person, "subject", subject, "woman", 1)[0],
        nodes.DefineConcept.execute(portraits, "style", style, "person", 2)[0],
    )


def recipe(nodes, pack, steps=4, **changes):
    chosen = nodes.ChooseRecipe.execute("magicapture", steps, 2, SIDE, 1.0, False)[0]
    settings = {
        i.id: i.default for i in nodes.TuneRecipe.define_schema().inputs if i.id != "recipe"
    }
    settings.update(attention_maps="8x8 to 64x64", variants=1, **changes)
    return nodes.TuneRecipe.execute(chosen, **settings)[0]


def train(nodes, pack, tiny, seed=0, **kwargs):
    subject, style = kwargs.pop("concepts", None) or concepts(nodes, pack)
    chosen = kwargs.pop("recipe", None) or recipe(nodes, pack)
    return nodes.Train.execute(
        tiny.model, tiny.clip, tiny.vae, subject, style, seed, 0, True, recipe=chosen, **kwargs
    )


def test_previews_tell_the_leakage_of_each_token(nodes, pack, tiny):
    subject, style = concepts(nodes, pack)
    _, _, previews, report, _ = nodes.Train.execute(
        tiny.model, tiny.clip, tiny.vae, subject, style, 1, 2, False, recipe=recipe(nodes, pack)
    ).args
    assert len(previews) == 2
    assert re.search(r"Leakage at the first preview: ada-1 \d+%, oil-1 \d+%; at the last", report)


def test_the_picture_comes_before_the_first_step_and_tells_each_stage(
    nodes, pack, tiny, monkeypatch
):
    """ui.md 14: "60 of 60" stood while the style was encoded, and nothing before it."""
    import comfy.utils

    told, shown = [], []
    hook = lambda done, total, preview, node_id: shown.append((done, total, preview))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    view = pack("magicapture.liveview").LiveView
    draw = view.draw
    monkeypatch.setattr(
        view, "draw", lambda self, standing: (told.append(standing), draw(self, standing))[1]
    )
    train(nodes, pack, tiny, seed=31)
    titles = [f"{standing.title} {standing.right}" for standing in told]
    assert titles[0] == "Checking photos and model "
    assert titles.index("Encoding the subject's photos 3 of 3") < titles.index(
        "Encoding the style's portraits 0 of 3"
    )
    first = next(i for i, standing in enumerate(told) if standing.detail == "the first step")
    assert all(standing.detail == "before step 1 of 4" for standing in told[:first])
    assert titles[-2].startswith("Step 4 of 4") and titles[-1] == "Finished 4 steps"
    assert shown[0][2] is not None and shown[-1][:2] == (4, 4) and shown[-1][2] is not None
    assert all(max(preview[1].size) <= preview[2] for *_, preview in shown if preview)


def test_time_left_counts_the_previews_that_are_to_come(pack, monkeypatch, nodes):
    """Drawing takes longer than steps on a slow machine; another phase has another speed."""
    module = pack("nodes._monitor")
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    job = pack("magicapture.training").TrainingJob(
        *concepts(nodes, pack), recipe(nodes, pack, steps=10)
    )
    monitor = module.Monitor(None, job, preview_every=4)
    training = pack("magicapture.training")
    right = lambda step: monitor._standing(step).right  # noqa: E731
    for step in (1, 2, 3, 4):
        monitor(training.Stepped(step, 10, "first", {"source": 1.0}, 1.0, 1.0, 2.0))
    assert right(4) == "0:12 left"
    now[0] += 60
    monitor(training.Previewed(4, "a photo", torch.rand(1, 3, 8, 8)))
    assert right(4) == "2:12 left"  # those after step 8 and at the end
    assert right(8) == "1:04 left" and right(10) == ""
    monitor(training.Stepped(5, 10, "second", {"source": 1.0}, 1.0, 1.0, 1.0))
    assert right(5) == "2:05 left"


def test_a_finished_run_says_what_to_do_next(nodes, pack, tiny, caplog):
    caplog.set_level("INFO")
    report = train(nodes, pack, tiny, seed=32)[3]
    assert "Next: Save Adapter" in report and report in caplog.text
    assert "Prompt: a photo of embedding:ada-1 woman in the embedding:oil-1 style" in report


def test_a_run_found_finished_still_shows_a_preview(nodes, pack, tiny, monkeypatch):
    import comfy.utils

    shown = []
    hook = lambda *args, node_id: shown.append(args)  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    subject, style = concepts(nodes, pack)
    inputs = (tiny.model, tiny.clip, tiny.vae, subject, style, 12)
    chosen = recipe(nodes, pack)
    _, curves, without, *_ = nodes.Train.execute(*inputs, 0, True, recipe=chosen).args
    assert torch.equal(without, curves)
    del shown[:]
    _, _, previews, *_ = nodes.Train.execute(*inputs, 100, True, recipe=chosen).args
    assert previews.shape == (1, SIDE, SIDE, 3)
    assert shown[-1][:2] == (4, 4) and shown[-1][2] is not None


def test_from_pictures_to_a_prompt_and_back_from_disk(nodes, pack, tiny, ksample):
    before = ksample(tiny)
    adapter, curves, previews, report, kept = train(nodes, pack, tiny, seed=11).args
    assert kept is None, "no checkpoints are asked for"
    assert curves.shape[-1] == 3 and previews.shape[-1] == 3
    assert "4 steps" in report and "embedding:ada-1" in report
    assert torch.equal(ksample(tiny), before)

    saved = nodes.SaveAdapter.execute(adapter, "ada in oil")
    assert saved[1] == "ada in oil.safetensors"
    loaded = nodes.LoadAdapter.execute(saved[1])[0]
    prompt = nodes.WritePrompt.execute(loaded, "composed", 0, "smiling")[0]
    assert prompt == "a photo of embedding:ada-1 woman in the embedding:oil-1 style, smiling"

    def drawn(one):
        model, clip = nodes.ApplyAdapter.execute(tiny.model, tiny.clip, one, 1.0).args
        return ksample(type(tiny)(model, clip, tiny.vae), prompt)

    assert torch.equal(drawn(adapter), drawn(loaded))
    assert not torch.equal(drawn(adapter), before)


def spelled(nodes, pack, subject="ada lovel", style=""):
    """Concepts without vectors; the style's phrase is its name."""
    person, portraits = references(nodes, pack), references(nodes, pack, [photos(seed=7)])
    define = nodes.DefineConcept.execute
    return (
        define(person, "subject", "ada-1", "woman", 0, phrase=subject)[0],
        define(portraits, "style", "sfumat", "person", 0, phrase=style)[0],
    )


def test_phrases_are_trained_saved_and_said_in_stock_prompts(nodes, pack, make, tiny, ksample):
    """The LoRA is one file, which ComfyUI's own loader takes; its prompt is in ordinary words."""
    import nodes as stock_nodes

    before, embeddings = ksample(tiny), sorted(make.embeddings.iterdir())
    adapter, _, _, report, _ = train(nodes, pack, tiny, concepts=spelled(nodes, pack)).args
    assert adapter.tokens == {} and "ada lovel, sfumat." in report
    assert torch.equal(ksample(tiny), before)

    name = nodes.SaveAdapter.execute(adapter, "ada in words")[1]
    assert sorted(make.embeddings.iterdir()) == embeddings
    loaded = nodes.LoadAdapter.execute(name)[0]
    prompt = nodes.WritePrompt.execute(loaded, "composed", 0, "")[0]
    assert prompt == "a photo of ada lovel woman in the sfumat style"
    assert f"Prompt: {prompt}" in report

    def drawn(model, clip):
        return ksample(type(tiny)(model, clip, tiny.vae), prompt)

    own = drawn(*nodes.ApplyAdapter.execute(tiny.model, tiny.clip, loaded, 1.0).args)
    load = stock_nodes.LoraLoader().load_lora
    assert torch.equal(drawn(*load(tiny.model, tiny.clip, name, 1.0, 1.0)), own)
    assert not torch.equal(own, ksample(tiny, prompt))

    encoded = nodes.EncodePrompt.execute(tiny.clip, prompt, "", "", loaded)[0]
    marked = encoded[0][1][pack("nodes._comfy.marks").TOKENS]
    ada, sfumat = (
        len(tiny.clip.tokenizer.clip_l.tokenizer(w)["input_ids"]) - 2
        for w in ("ada lovel", "sfumat")
    )
    # start a photo of | ada lovel woman | in the | sfumat style; a noun right behind counts
    assert [mark.columns for mark in marked] == [
        tuple(range(4, 5 + ada)),
        tuple(range(7 + ada, 8 + ada + sfumat)),
    ]
    assert marked[0].word == (4 + ada,)
    with pytest.raises(pack("magicapture.errors").InputError, match="no ada lovel or sfumat"):
        nodes.EncodePrompt.execute(tiny.clip, "a photo of a woman", "", "", loaded)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (("woman", ""), "is its class word 'woman'"),
        (("a (b)", ""), "without brackets"),
        (("x" * 61, ""), "at most 60 characters"),
        (("Sfumat", ""), "have the same phrase, 'Sfumat'"),
    ],
)
def test_phrases_that_cannot_be_learned(nodes, pack, tiny, phrases, message):
    with pytest.raises(pack("magicapture.errors").InputError, match=re.escape(message)):
        train(nodes, pack, tiny, concepts=spelled(nodes, pack, *phrases))


def test_an_fp8_model_trains_and_is_left_as_it_was(nodes, pack, make, tiny, ksample):
    tiny.model = make.model(dtype=torch.float8_e4m3fn, manual_cast=torch.float32)
    tiny.clip = make.clip(dtype=torch.float8_e4m3fn)
    network = tiny.networks["unet"]
    weights = {name: p.view(torch.uint8).clone() for name, p in network.named_parameters()}
    picture = ksample(tiny)
    adapter = train(nodes, pack, tiny).args[0]
    assert all(torch.equal(weights[n], p.view(torch.uint8)) for n, p in network.named_parameters())
    assert torch.equal(picture, ksample(tiny))
    assert any(weights.up.any() for weights in adapter.lora.values())


def test_a_list_of_sizes_and_a_batch_and_captions(nodes, pack):
    images = [photos(2), photos(1, (96, 80), seed=2)]
    shown = references(
        nodes, pack, images, [face().expand(2, -1, -1), face((96, 80))], "by night\n\n"
    )
    assert [tuple(i.shape) for i in shown.images] == [(3, 64, 64), (3, 64, 64), (3, 96, 80)]
    assert [photo.caption for photo in shown] == ["by night", None, None]


def test_a_folder_of_the_input_folder(nodes, pack):
    import folder_paths

    folder = Path(folder_paths.get_input_directory()) / "ada"
    folder.mkdir(exist_ok=True)
    for i in range(3):
        pixels = np.full((80, 70, 3), 60 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "notes.md").write_text("not a photo")
    shown = nodes.LoadPhotoSet.execute(["ada"])[0]
    assert len(shown.images) == 3 and any("notes.md" in text for text in shown.warnings)
    stamp = nodes.LoadPhotoSet.fingerprint_inputs(["ada"])
    (folder / "0.png").touch()
    assert nodes.LoadPhotoSet.fingerprint_inputs(["ada"]) != stamp


@pytest.mark.parametrize("at", [1, 2, 3])
def test_cancel_at_any_step_keeps_what_is_done(nodes, pack, tiny, ksample, monkeypatch, at):
    import comfy.model_management as management

    before = ksample(tiny)
    seen = []

    def cancel_at(trainer, event):
        seen.append(event.step)
        if event.step == at:
            management.interrupt_current_processing()

    monitor = pack("nodes.training").Monitor
    stepped = monitor._stepped
    monkeypatch.setattr(
        monitor, "_stepped", lambda self, event: (cancel_at(self, event), stepped(self, event))
    )
    with pytest.raises(pack.comfy.Cancelled):
        train(nodes, pack, tiny, seed=100 + at)
    assert seen == list(range(1, at + 1))
    assert torch.equal(ksample(tiny), before)
    monkeypatch.setattr(monitor, "_stepped", stepped)
    resumed = train(nodes, pack, tiny, seed=100 + at)[0]
    monkeypatch.setattr(pack("nodes.training"), "state_folder", lambda: None)
    whole = train(nodes, pack, tiny, seed=100 + at)[0]
    for name, weights in whole.lora.items():
        assert torch.equal(weights.up, resumed.lora[name].up)
    for name, vectors in whole.tokens.items():
        assert torch.equal(vectors["clip_l"], resumed.tokens[name]["clip_l"])


def bad(pack, message, kind="InputError"):
    return pytest.raises(getattr(pack("magicapture.errors"), kind), match=message)


def test_no_photos(nodes, pack):
    with bad(pack, "Load Photo Set: No photos are given"):
        nodes.LoadPhotoSet.execute([pack("nodes.references").NO_FOLDER])


def test_a_folder_outside_the_input_folder(nodes, pack):
    with bad(pack, "Load Photo Set: There is no folder '../output'"):
        nodes.LoadPhotoSet.execute(["../output"])


def test_masks_that_do_not_match_in_number(nodes, pack):
    with bad(pack, "There are 2 face masks for 3 photos"):
        references(nodes, pack, masks=[face().expand(2, -1, -1)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": [photos(1)]}, "There is 1 photo .*expected 2 or more"),
        ({"masks": []}, "no mask of the face"),
        ({"masks": [torch.zeros(3, SIDE, SIDE)]}, "no mask of the face"),
        ({"masks": [torch.ones(3, SIDE, SIDE)]}, "the mask is full"),
        ({"images": [photos(3, (40, 40))], "masks": [face((40, 40)).expand(3, -1, -1)]}, "40x40"),
        ({"images": [photos() * torch.nan]}, "NaN"),
    ],
)
def test_photos_that_cannot_be_trained_on(nodes, pack, tiny, given, message):
    made = concepts(nodes, pack, **given)
    with bad(pack, f"(?s)Train MagiCapture: .*{message}"):
        train(nodes, pack, tiny, concepts=made)


def test_a_mask_of_another_shape_is_named_at_once(nodes, pack):
    with bad(pack, "Load Photo Set: image 1: the mask is 96x64 pixels and the picture 64x64"):
        references(nodes, pack, masks=[face((64, 96)).expand(3, -1, -1)])


def test_without_masks_where_the_recipe_needs_none(nodes, pack, tiny):
    made = concepts(nodes, pack, masks=[])
    unmasked = recipe(nodes, pack, masks="off")
    assert not unmasked.uses("attention")
    adapter = train(nodes, pack, tiny, concepts=made, recipe=unmasked, seed=9)[0]
    assert adapter.lora


@pytest.mark.parametrize(
    ("name", "message"),
    [("a/b", "cannot be used"), ("", "cannot be used"), ("woman", "already a word")],
)
def test_token_names(nodes, pack, tiny, name, message):
    with bad(pack, message):
        train(nodes, pack, tiny, concepts=concepts(nodes, pack, subject=name))


def test_a_token_named_like_somebody_elses_embedding(nodes, pack, tiny):
    from safetensors.torch import save_file

    foreign = pack.comfy.model_folders("embeddings")[0] / "bob-1.safetensors"
    save_file({"emb_params": torch.zeros(1, 32)}, foreign)
    with bad(pack, "Train MagiCapture: .*bob-1.safetensors is there already"):
        train(nodes, pack, tiny, concepts=concepts(nodes, pack, subject="bob-1"))
    assert foreign.exists()


@pytest.mark.parametrize("missing", ["model", "clip", "vae"])
def test_a_part_that_is_missing(nodes, pack, tiny, missing):
    setattr(tiny, missing, None)
    with bad(pack, f"Train MagiCapture: There is no .*'{missing}'"):
        train(nodes, pack, tiny)


@pytest.mark.parametrize("name", ["../ada", "a/../../b", "C:\\x", ""])
def test_an_output_name_that_leaves_its_folder(nodes, pack, tiny, name):
    adapter = train(nodes, pack, tiny, seed=12)[0]
    with bad(pack, "Save Adapter: "):
        nodes.SaveAdapter.execute(adapter, name)


def test_nan_in_the_loss(nodes, pack, tiny, monkeypatch):
    objective = pack("magicapture.training.step").Objective
    honest = objective.__call__
    calls = []

    def poisoned(self, rows, progress=0.0):
        calls.append(1)
        losses = honest(self, rows, progress)
        return losses if len(calls) < 3 else type(losses)(losses.total * torch.nan, losses.by_name)

    monkeypatch.setattr(objective, "__call__", poisoned)
    with bad(pack, "Train MagiCapture: The loss became nan at step 3", "NumericalError"):
        train(nodes, pack, tiny, seed=77)


def test_settings_of_the_recipe_nodes(nodes, pack):
    tuned = recipe(
        nodes,
        pack,
        steps=10,
        identity_weight=0.25,
        unet_rate=3e-4,
        text_encoder_rate=2e-5,
        attention_scaling="minmax",
        lora_targets="cross_and_self",
    )
    own = pack("magicapture.recipes").recipe()
    last = tuned.phases[-1]
    assert tuned.steps == 10 and tuned.lora.rank == 2 and tuned.resolution == SIDE
    assert (
        last.weights.identity == 0.25 and last.weights.composed == own.phases[-1].weights.composed
    )
    assert (last.rates.unet, last.rates.text_encoder) == (3e-4, 2e-5)
    assert tuned.phases[0].rates.unet == 0 and tuned.phases[0].rates.text_encoder == 0
    assert tuned.refocus.scaling == "minmax" and tuned.lora.targets == "cross_and_self"
    small = nodes.ChooseRecipe.execute("paper", 0, -1, -1, 1.0, True)[0]
    assert small.batching == "in_turn" and small.checkpointing
    assert small.lora.rank == pack("magicapture.recipes").recipe("paper").lora.rank
