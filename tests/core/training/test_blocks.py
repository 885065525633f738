"""Which blocks of a transformer carry the maps: measured, by name, or fixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from magicapture.adapters import Adapter
from magicapture.attention import agreement, block_of, blocks, captured, select
from magicapture.backbones import DiffusersBackbone, load_backbone
from magicapture.config import RefocusSettings, to_dict
from magicapture.data import Learnable, ReferenceSet, fingerprint
from magicapture.errors import InputError
from magicapture.paperdoll.model import transformer_backbone
from magicapture.paperdoll.recipe import PROMPTS
from magicapture.paperdoll.weights import model_folder
from magicapture.refocusing import word_columns
from magicapture.tokens import Concept, Prompt, TokenVectors
from magicapture.training import Prepared, Resumed, Stepped, Trainer, TrainingJob, Warned
from magicapture.training.blocks import agreements, best, looked_at
from magicapture.training.checks import refocusing_capture
from magicapture.training.job import generator

SITES = [
    f"{stack}.{i}.attn"
    for stack in ("transformer_blocks", "single_transformer_blocks")
    for i in range(2)
]
BLOCKS = ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1"]
FACE = (slice(None), slice(30, 94), slice(34, 98))


def backbone_of(transformer: nn.Module) -> DiffusersBackbone:
    doll = load_backbone(model_folder())
    transformer.eval().requires_grad_(False)
    text, words = doll.text_encoders["clip_l"], doll.tokenizers["clip_l"]
    return transformer_backbone(transformer, doll.vae, text, words)


DOLL = {
    "in_channels": 32,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "guidance_embeds": False,
}
"""What the drawn world's transformer has of its own; the rest is `tiny.flux`'s."""


@pytest.fixture(scope="module")
def random_backbone(tiny) -> DiffusersBackbone:
    return backbone_of(tiny.flux(**DOLL))


@pytest.fixture
def doll_job(make_job) -> Callable[..., TrainingJob]:
    """A tiny job in the dolls' words; blocks: the setting. Faces are bright squares."""

    def make(blocks: str = "auto", masks: Tensor | None = None, **changes: Any) -> TrainingJob:
        refocus = RefocusSettings(blocks=blocks)
        job = make_job(prompts=PROMPTS, refocus=refocus, **changes)
        face = torch.zeros(1, 128, 128)
        face[FACE] = 1
        images = tuple(
            torch.where(face > 0, 0.7 + 0.3 * i, 0.3 * i) for i in job.subject.photos.images
        )
        known = (face if masks is None else masks,) * len(images)
        photos = ReferenceSet.of(images, face_masks=known)
        return replace(job, subject=Learnable(Concept("ada-1", "subject"), photos))

    return make


# -- the measure -----------------------------------------------------------------------------------


def test_agreement_counts_pairs_of_cells():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (5, 6, 8), generator=generator).float()  # with ties
    inside = (torch.rand(5, 1, 6, 8, generator=generator) < 0.3).float()
    for found, map_, mask in zip(agreement(values, inside), values, inside[:, 0] > 0, strict=True):
        pairs = map_[mask][:, None] - map_[~mask][None]
        expected = (pairs > 0).double().mean() + (pairs == 0).double().mean() / 2
        torch.testing.assert_close(found, expected)


def test_agreement_of_known_maps():
    mask = torch.zeros(4, 1, 16, 16)
    mask[:3, :, 4:12, 4:12] = 1
    flat = torch.full((8, 8), 0.25)
    parted = nn.functional.avg_pool2d(mask[0], 2)[0]
    found = agreement(torch.stack([parted, -parted, flat, parted]), mask)
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 0.0, 0.5]).double())
    assert found[3].isnan()  # a mask of nothing


def test_the_best_are_a_third_and_five_at_most():
    assert list(best({"a": 0.5, "b": 0.9, "c": 0.7})) == ["b"]
    assert list(best({"a": 0.5})) == ["a"] and best({}) == {}
    many = best({str(i): i / 100 for i in range(57)})
    assert list(many) == ["56", "55", "54", "53", "52"]


# -- names -----------------------------------------------------------------------------------------


def test_a_block_has_one_name_on_every_host(random_backbone):
    assert blocks(random_backbone.unet) == dict(zip(BLOCKS, SITES, strict=True))
    assert [block_of(name) for name in BLOCKS] == BLOCKS


@pytest.mark.parametrize(
    "names",
    ["single_blocks.1, double_blocks.0", "single_transformer_blocks.1.attn double_blocks.0"],
)
def test_blocks_by_name(random_backbone, names):
    settings = RefocusSettings(blocks=names)
    assert looked_at(random_backbone, settings) == [SITES[3], SITES[0]]


def test_a_block_that_is_not_there_is_refused_before_photos_are_encoded(random_backbone, doll_job):
    events: list[Any] = []
    with (
        pytest.raises(InputError, match=r"no block 'double_blocks.9'.*single_blocks.1"),
        Trainer.open(doll_job("double_blocks.9"), random_backbone, listener=events.append),
    ):
        pass
    assert not any(isinstance(event, Prepared) for event in events)
    with pytest.raises(InputError, match="blocks: expected auto, fixed or names"):
        replace(doll_job("fixed").recipe.refocus, blocks=" , ")


def test_fixed_are_the_double_blocks_and_their_run_keeps_its_name(random_backbone, doll_job):
    job = doll_job("fixed")
    assert looked_at(random_backbone, job.recipe.refocus) == select(random_backbone.unet)
    assert select(random_backbone.unet) == SITES[:2]
    before = to_dict(job.recipe)
    del before["refocus"]["blocks"]  # recipes had no such setting, nor these
    del before["unconditional"], before["subject_is"], before["dino"]
    for phase in before["phases"]:
        for name in [n for n in phase["weights"] if n == "unconditional" or n.startswith("dino")]:
            del phase["weights"][name]
    texts = (
        json.dumps(before, sort_keys=True),
        json.dumps([*(of.facts() for of in job.concepts), job.seed], sort_keys=True),
        *(fingerprint(learnable.photos) for learnable in job.learnables),
    )
    assert job.fingerprint() == hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert job.fingerprint() != doll_job("auto").fingerprint()


def test_on_a_unet_it_is_said_to_have_no_effect(make_job, backbone):
    events: list[Any] = []
    refocus = replace(make_job().recipe.refocus, blocks="auto")
    with Trainer.open(make_job(refocus=refocus), backbone, listener=events.append) as trainer:
        assert not trainer.blocks
        with refocusing_capture(backbone, trainer.recipe, trainer.blocks) as capture:
            assert list(capture.sites) == select(backbone.unet)
    told = [e.text for e in events if isinstance(e, Warned) and "refocus.blocks (auto)" in e.text]
    assert len(told) == 1 and "no effect on Stable Diffusion 1.x" in told[0]


# -- measured --------------------------------------------------------------------------------------


def test_it_is_of_the_class_words_map_in_the_noised_photos(random_backbone, doll_job):
    """The same by the recorder of the loss, and by columns from the tokenizer."""
    backbone, job = random_backbone, doll_job()
    words = backbone.tokenizers["clip_l"]
    [_, person, _] = words("person").input_ids
    columns = [words("a photo of a person").input_ids.index(person)]
    expected = []
    with Trainer.open(job, backbone) as trainer, torch.no_grad():
        told = backbone.encode_prompts([Prompt("a photo of a person")], TokenVectors({}))
        chance = generator(job.seed, "blocks")
        for photo in trainer.materials.batches.source.each():
            noise = torch.randn(photo.latents.shape, generator=chance)
            with captured(backbone.attention, SITES) as capture:
                with capture.recording():
                    noisy = 0.5 * photo.latents + 0.5 * noise  # an SNR of 1
                    backbone.predict(noisy, torch.tensor([0.5]), told)
                maps = capture.maps([{"person": columns}], (16, 16))
            areas = [agreement(one.values, photo.face_mask) for one in maps]
            expected.append(torch.cat(areas))
        found = agreements(job, backbone, trainer.materials.batches, lambda event: None)
    assert len(expected) == 4 and list(found) == BLOCKS
    values = torch.tensor(list(found.values())).double()
    torch.testing.assert_close(values, torch.stack(expected).mean(0), atol=1e-6, rtol=0)
    [block] = trainer.blocks
    assert block == BLOCKS[int(values.argmax())]


def bright_cells(job: TrainingJob, backbone: DiffusersBackbone) -> tuple[Tensor, Tensor]:
    """A direction (32,) of a place's normed latents and where on it bright ones part from dark."""
    with torch.no_grad():
        latents = backbone.encode(torch.stack(job.subject.photos.images))
    noised = (latents + torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))) / 2
    cells = rearrange(noised, "b c (h p) (w q) -> b h w (c p q)", p=2, q=2)
    cells = nn.functional.layer_norm(cells, cells.shape[-1:])
    mask = nn.functional.avg_pool2d(job.subject.photos.photos[0].face_mask[None], 16)[0, 0] > 0.5
    bright, dark = cells[:, mask].mean((0, 1)), cells[:, ~mask].mean((0, 1))
    direction = bright - dark
    return direction, direction @ (bright + dark) / 2


def look_at_words(network: Any, site: str, direction: Tensor, middle: Tensor) -> None:
    """Have one layer's bright cells attend to the words, dark ones to the picture.

    In a network of zeros every layer attends evenly. Numbers 0 to 3 of a head are not rotated.
    """
    network.x_embedder.weight.copy_(torch.eye(32))
    told = torch.tensor([1.0, -1.0] * 16)  # the state of every word
    told -= (told @ direction) / (direction @ direction) * direction
    network.context_embedder.bias.copy_(told)
    layer = network.get_submodule(site)
    first = torch.zeros(32)
    first[::16] = 1  # of both heads
    layer.to_q.weight.copy_(first[:, None] * direction)
    layer.to_q.bias.copy_(-middle * first)
    if layer.added_kv_proj_dim is not None:
        layer.add_k_proj.bias.copy_(first)
        return
    words = nn.functional.layer_norm(told, told.shape)
    layer.to_k.weight.copy_(first[:, None] * words / words.norm())
    layer.to_k.bias.copy_(-0.7 * words.norm() * first)


@pytest.mark.parametrize("chosen", range(4), ids=BLOCKS)
def test_the_block_that_looks_at_the_faces_is_the_one(tiny, doll_job, chosen):
    network = tiny.flux(**DOLL)
    for name, parameter in network.named_parameters():
        nn.init.constant_(parameter, float(".attn.norm_" in name))
    backbone, job = backbone_of(network), doll_job()
    with torch.no_grad():
        look_at_words(network, SITES[chosen], *bright_cells(job, backbone))
    events: list[Any] = []
    with Trainer.open(job, backbone, listener=events.append) as trainer:
        found = agreements(job, backbone, trainer.materials.batches, lambda event: None)
        again = trainer.blocks
        with refocusing_capture(backbone, trainer.recipe, trainer.blocks) as capture:
            assert capture.sites == (SITES[chosen],)
    assert list(again) == [BLOCKS[chosen]] and again[BLOCKS[chosen]] > 0.9
    assert again[BLOCKS[chosen]] == found[BLOCKS[chosen]]
    others = {block: value for block, value in found.items() if block != BLOCKS[chosen]}
    assert set(others.values()) == {0.5} and len(others) == 3  # they attend evenly
    assert trainer.adapter().info["blocks"] == f"{BLOCKS[chosen]} {again[BLOCKS[chosen]]:.2f}"

    inverted = 1 - job.subject.photos.photos[0].face_mask
    with Trainer.open(doll_job(masks=inverted), backbone, listener=events.append) as trainer:
        assert BLOCKS[chosen] not in trainer.blocks
    assert "agrees with the faces" in events[-1].text  # 0.5 is chance


def test_flux1_measures_by_the_columns_of_t5(make_job, flux_backbone):
    """Which stand without a start, and whose tokens the family's context holds."""
    text, vectors = Prompt("a photo of a <ada> woman"), {"clip_l": (2, 32), "t5xxl": (2, 48)}
    tokens = TokenVectors({"ada": {key: torch.zeros(shape) for key, shape in vectors.items()}})
    told = flux_backbone.encode_prompts([text], tokens)
    [ada] = (row["ada"] for row in told.positions)
    assert word_columns(flux_backbone, text, tokens, "woman") == (ada[-1] + 1,)
    assert ada == [4, 5]
    refocus = RefocusSettings(blocks="auto")
    with Trainer.open(make_job(refocus=refocus), flux_backbone) as trainer:
        [name] = trainer.blocks
        with refocusing_capture(flux_backbone, trainer.recipe, trainer.blocks) as capture:
            assert [block_of(site) for site in capture.sites] == [name]


def test_photos_without_cells_of_the_face_leave_the_fixed_blocks(random_backbone, doll_job):
    events: list[Any] = []
    small = torch.zeros(1, 128, 128)
    small[:, 60:64, 60:64] = 1  # a sixteenth of a map's cell
    with Trainer.open(doll_job(masks=small), random_backbone, listener=events.append) as trainer:
        assert trainer.blocks == {} and "blocks" not in trainer.adapter().info
        with refocusing_capture(random_backbone, trainer.recipe, trainer.blocks) as capture:
            assert list(capture.sites) == SITES[:2]
    assert [e for e in events if isinstance(e, Warned) and "cannot be measured" in e.text]


def test_without_the_class_word_in_the_prompt_it_says_what_to_do(random_backbone, doll_job):
    prompts = replace(PROMPTS, prior=("a photo",))
    with (
        pytest.raises(InputError, match=r"without the class word 'person'.*prompts.prior"),
        Trainer.open(
            replace(doll_job(), recipe=replace(doll_job().recipe, prompts=prompts)), random_backbone
        ),
    ):
        pass


def trained(
    job: TrainingJob, backbone: DiffusersBackbone, **options: Any
) -> tuple[Adapter, list[Any]]:
    events: list[Any] = []
    with Trainer.open(job, backbone, listener=events.append, **options) as trainer:
        return trainer.run(), events


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.lora.keys() == other.lora.keys()
    for name, weights in one.lora.items():
        assert torch.equal(weights.down, other.lora[name].down)
        assert torch.equal(weights.up, other.lora[name].up)


def test_a_resumed_run_goes_on_with_its_blocks(random_backbone, doll_job, tmp_path: Path):
    """They are not measured again, and nothing else of the run depends on the measuring."""
    whole, events = trained(doll_job(), random_backbone)
    assert [e for e in events if isinstance(e, Prepared) and "blocks" in e.stage]
    name = whole.info["blocks"].split()[0]
    by_name, _ = trained(doll_job(name), random_backbone)
    assert_same(whole, by_name)
    other = next(block for block in BLOCKS if block != name)
    by_other, _ = trained(doll_job(other), random_backbone)
    assert any(not torch.equal(w.up, by_other.lora[key].up) for key, w in whole.lora.items())

    def stop(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Trainer.open(doll_job(), random_backbone, listener=stop, state_folder=tmp_path) as trainer,
    ):
        trainer.run()
    kept = trainer.keeper.load()
    assert list(kept["blocks"]) == [name]
    trainer.keeper.save({**kept, "blocks": {other: 0.9}})
    with Trainer.open(doll_job(), random_backbone, state_folder=tmp_path) as changed:
        assert changed.blocks == {other: 0.9}
        with changed._phase(changed.recipe.phases[1]) as objective:
            assert [block_of(site) for site in objective.capture.sites] == [other]
    trainer.keeper.save(kept)
    resumed, events = trained(doll_job(), random_backbone, state_folder=tmp_path)
    assert Resumed(4, 7) in events
    assert not [e for e in events if isinstance(e, Prepared) and "blocks" in e.stage]
    assert_same(whole, resumed)
    assert resumed.info["blocks"] == whole.info["blocks"]


def test_a_state_without_blocks_goes_on(random_backbone, doll_job, tmp_path: Path):
    """As earlier versions saved it."""
    job = doll_job("fixed")
    with Trainer.open(job, random_backbone, state_folder=tmp_path) as trainer:
        trainer.step = 2
        state = trainer.state()
        del state["blocks"]
        trainer.keeper.save(state)
    with Trainer.open(job, random_backbone, state_folder=tmp_path) as trainer:
        assert trainer.step == 2 and trainer.blocks == {}
