"""The training loop saves as it goes, and a run that was cut equals one that was not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from magicapture.paperdoll import identity_from_seed, render, style_from_seed
from magicapture.paperdoll.align import TEMPLATE, crops, similarity
from magicapture.paperdoll.readers import (
    PARTS,
    ConvEmbedder,
    FaceFinder,
    Parser,
    PatchEmbedder,
    StyleEmbedder,
)
from pretrain import batch as batch_module
from pretrain import dataset, stage_readers
from pretrain.batch import Batch
from pretrain.loop import Plan, Trainer, averaged
from pretrain.scores import auc

PLAN = Plan(steps=12, rate=1e-2, warmup=2)


def _trainer(folder: Path) -> tuple[Trainer, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return Trainer("small", model, PLAN, folder), model


def _loss_of(model: nn.Module):
    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(8, 3, generator=generator)
        return {"error": (model(x) - x.sum(1, keepdim=True)).pow(2).mean()}

    return losses


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, model = _trainer(tmp_path / "whole")
    whole.run(_loss_of(model))
    cut, model = _trainer(tmp_path / "cut")
    for _ in range(5):
        cut._advance(_loss_of(model))
    cut.save()
    again, model = _trainer(tmp_path / "cut")
    assert again.step == 5
    again.run(_loss_of(model))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    one, other = averaged(tmp_path / "whole", "small"), averaged(tmp_path / "cut", "small")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    trainer, model = _trainer(tmp_path)
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.run(lambda step, generator: {"bad": next(model.parameters()).sum() * torch.nan})


def test_an_untrained_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vae"):
        averaged(tmp_path, "vae")


def test_the_rate_rises_stays_and_falls() -> None:
    plan = Plan(steps=100, rate=1.0, warmup=10, decay=0.5)
    rates = [plan.rate_at(step) for step in (0, 9, 50, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.118])


def test_shards_hold_what_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD", 4)
    shards = dataset.prepare(tmp_path, 8, size=32)
    assert len(shards) == 8
    images, labels = shards.pick(np.array([5, 0]))
    identity, style, pose = dataset.seeds_of(5)
    doll = render(
        identity_from_seed(identity),
        style_from_seed(style),
        dataset.pose_from_seed(pose),
        32,
    )
    assert np.abs(images[0] / 255 - doll.image).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(labels[0], doll.labels)
    assert np.allclose(shards.points(np.array([5]))[0], doll.landmarks)
    assert shards.seeds_at(np.array([5, 0])).tolist() == [[identity, style, pose], [0, 0, 0]]


def test_moved_landmarks_stay_on_their_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD", 4)
    shards = dataset.prepare(tmp_path, 4, size=64)
    rng = np.random.default_rng(0)
    batch = Batch(shards, np.arange(4), rng, torch.device("cpu"), 1.0)
    grid = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy")
    batch.images = torch.stack([*grid, grid[0]]).expand(4, -1, -1, -1)  # a pixel holds its place
    pictures, points = batch.moved()
    for picture, before, after in zip(pictures, batch.points, points, strict=True):
        x, y = after[2].round().long().clamp(0, 63)
        assert np.allclose(picture[:2, y, x], before[2], atol=1.2)


def test_neighbours_share_a_style_and_nothing_else() -> None:
    for number in (0, 12_000, 61_438):
        one, other = dataset.seeds_of(number), dataset.seeds_of(number + 1)
        assert one[1] == other[1] and one[0] != other[0] and one[2] != other[2]


def test_alignment_brings_landmarks_to_the_template() -> None:
    turn = np.array([[0.8, -0.3], [0.3, 0.8]], np.float32)
    points = (TEMPLATE @ turn.T + np.array([5, -7], np.float32))[None]
    assert np.allclose(similarity(points)[0], np.c_[turn, (5, -7)], atol=1e-4)
    doll = render(identity_from_seed(3), style_from_seed(3))
    image = torch.from_numpy(doll.image)[None]
    still = crops(image, TEMPLATE[None], 112)
    assert torch.allclose(still, image[..., :112, :112], atol=1e-5)


def test_readers_have_the_shapes_they_promise() -> None:
    faces, pictures = torch.rand(2, 3, 112, 112), torch.rand(2, 3, 128, 128)
    for embedder in (ConvEmbedder(), PatchEmbedder()):
        assert embedder.eval()(faces).shape == (2, 128)
    points, score = FaceFinder().eval()(pictures)
    assert points.shape == (2, 5, 2) and score.shape == (2,)
    assert (points > -1).all() and (points < 128).all()
    assert Parser().eval()(pictures).shape == (2, PARTS, 128, 128)
    assert StyleEmbedder().eval()(pictures, torch.zeros(2, 1, 128, 128)).shape == (2, 96)


def test_style_is_blind_to_the_face() -> None:
    model = StyleEmbedder().eval()
    picture, face = torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 128, 128)
    face[..., 40:90, 40:90] = 1
    other = torch.where(face > 0, torch.rand_like(picture), picture)
    assert torch.equal(model(picture, face), model(other, face))


def test_pairs_oppose_others_but_not_namesakes() -> None:
    vectors = torch.eye(3, 8)
    apart = stage_readers._matching(vectors, vectors, torch.tensor([0, 1, 2]), 0.5)
    assert apart.item() == pytest.approx(np.log(1 + 2 * np.exp(-2)), rel=1e-4)
    same = stage_readers._matching(vectors, vectors, torch.tensor([0, 1, 1]), 0.5)
    assert same.item() < apart.item()


def test_namesakes_share_a_face_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD", 4)
    for module in (dataset, batch_module):
        monkeypatch.setattr(module, "IDENTITIES", 3)
    shards = dataset.prepare(tmp_path, 8, size=32)
    batch = Batch(shards, np.arange(8), np.random.default_rng(0), torch.device("cpu"), 1.0)
    other = batch.namesakes()
    assert (batch.seeds[:, 0] == other.seeds[:, 0]).all()
    assert (batch.seeds[:6, 2] != other.seeds[:6, 2]).all()


def test_traits_are_standardised() -> None:
    table = stage_readers.trait_table(200)
    assert torch.allclose(table.mean(0), torch.zeros(table.shape[1]), atol=1e-4)
    assert torch.allclose(table.std(0), torch.ones(table.shape[1]), atol=1e-4)


def test_auc_of_known_cases() -> None:
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([0.0]), np.array([1.0])) == 0.0
    assert auc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5


def test_rough_estimates_lose_detail_and_colour(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dataset, "SHARD", 4)
    shards = dataset.prepare(tmp_path, 8, size=64)
    batch = Batch(shards, np.arange(8), np.random.default_rng(0), torch.device("cpu"), 1.0)

    def detail(images: Tensor) -> Tensor:
        smooth = functional.avg_pool2d(images, 3, 1, 1)  # without the noise
        return (smooth - functional.avg_pool2d(smooth, 5, 1, 2)).abs().mean((1, 2, 3))

    rough = torch.stack([batch.estimated(batch.images) for _ in range(16)])
    assert rough.min() >= 0 and rough.max() <= 1
    details = torch.stack([detail(images) for images in rough]) / detail(batch.images)
    assert details.min() < 0.5 and details.mean() < 0.95
    colour = rough.std(2).mean((2, 3)) / batch.images.std(1).mean((1, 2))
    assert colour.min() < 0.5 and colour.mean() < 1
