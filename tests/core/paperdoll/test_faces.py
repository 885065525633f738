"""The shipped networks in the places of a user's: found, masked, checked and measured."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F

from magicapture.data import ReferenceSet
from magicapture.data.faces import with_faces
from magicapture.doctor import judge_photos
from magicapture.errors import StorageError
from magicapture.faces.analyzer import FaceAnalyzer
from magicapture.paperdoll.faces import doll_analyzer
from magicapture.paperdoll.pairs import Pair, make_pair, pictures, references
from magicapture.paperdoll.weights import loss_embedder
from magicapture.person import Person, measure_identity


@pytest.fixture(scope="module")
def analyzer() -> FaceAnalyzer:
    return doll_analyzer()


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(1_000_000, 1_000_050, photos=6, poses=2)


def test_masks_and_landmarks_are_near_the_true_ones(analyzer, pair) -> None:
    true = references(pair.source + pair.reference)
    filled, found = with_faces(ReferenceSet.of(true.images), analyzer)
    assert {one.origin for one in found} == {"parsed"}
    shares = []
    for got, photo, one in zip(filled, true, found, strict=True):
        ours, theirs = got.face_mask > 0.5, photo.face_mask > 0.5
        shares.append(float((ours & theirs).sum() / (ours | theirs).sum()))
        off = (got.landmarks - photo.landmarks).norm(dim=1)
        assert float(off.max()) < 0.1 * one.face.width and got.size == (128, 128)
    assert statistics.mean(shares) > 0.75 and min(shares) > 0.5


@pytest.mark.parametrize("side", [1, 8, 32, 128])
@pytest.mark.parametrize("deviation", [0.0, 0.2, 1.0])
def test_no_face_is_found_in_noise(analyzer, side, deviation) -> None:
    generator = torch.Generator().manual_seed(side)
    for _ in range(4):
        noise = 0.5 + deviation * torch.randn(1, 3, side, side, generator=generator)
        assert analyzer.detector(F.interpolate(noise.clamp(0, 1), (128, 128))[0]) == ()


def test_no_face_is_found_in_pieces_of_one(analyzer, pair) -> None:
    image = references(pair.source).images[0]
    assert len(analyzer.detector(image)) == 1
    rows = torch.stack(image.split(16, dim=1))[torch.tensor([3, 6, 1, 4, 7, 2, 5, 0])]
    columns = torch.stack(torch.cat(list(rows), 1).split(16, 2))[[5, 2, 7, 0, 3, 6, 1, 4]]
    assert analyzer.detector(torch.cat(list(columns), dim=2)) == ()


def test_the_doctor_finds_the_intruder(analyzer, pair) -> None:
    other = make_pair(1_000_001, 1_000_050, photos=2, poses=2)
    images = references(pair.source + other.source[:1]).images
    filled, found = with_faces(ReferenceSet.of(images), analyzer)
    report = judge_photos(filled, found, "subject", resolution=128, embedder=analyzer.embedder)
    assert ["another person" in photo.text for photo in report.photos] == [False] * 6 + [True]


def test_identity_by_another_embedder_than_the_loss(analyzer, pair) -> None:
    person = Person.in_photos(pictures(pair.source), analyzer)
    truth = measure_identity(pictures(pair.unseen[:4]), person, analyzer, loss_embedder())
    others = measure_identity(pictures(pair.others_in_style[:8]), person, analyzer)
    assert truth.share > 0.85 and others.share < 0.4
    assert truth.of_the_loss is False


def test_missing_weights_are_named(tmp_path) -> None:
    with pytest.raises(StorageError, match="identity_score"):
        doll_analyzer(tmp_path)
