"""A person's own figure, whose face is meant, and how much of them pictures show."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.faces.align import ARCFACE_TEMPLATE
from magicapture.faces.analyzer import FaceAnalyzer
from magicapture.faces.embed import FaceEmbeddingNetwork, Normalisation
from magicapture.faces.protocols import Face
from magicapture.person import IdentityReport, Person, measure_identity, same

SIDE = 40.0


def coloured(*colours: tuple[float, float, float]) -> Tensor:
    """A picture of a row of faces, each an even square of a colour."""
    squares = torch.tensor(colours).T[:, None, :, None]
    return squares.expand(3, int(SIDE), len(colours), int(SIDE)).flatten(2)


def squares(image: Tensor) -> tuple[Face, ...]:
    """A detector that knows where `coloured` puts faces; black ones are none."""
    corners = [torch.tensor([x, 0.0]) for x in torch.arange(0, image.shape[-1], SIDE)]
    return tuple(
        Face(torch.cat([at, at + SIDE]), ARCFACE_TEMPLATE * (SIDE / 112) + at, 1.0)
        for at in corners
        if image[:, 5, int(at[0]) + 5].any()
    )


def red_and_green(faces: Tensor) -> Tensor:
    """A face embedder that sees how red and how green a face is."""
    return faces[:, :2].mean(dim=(2, 3))


WHO = FaceAnalyzer(squares, embedder=red_and_green)
RED, ADA, BOB = (1.0, 0.0, 0.0), (1.0, 0.1, 0.0), (0.1, 1.0, 0.0)
NOBODY = (0.0, 0.0, 0.0)


def test_the_person_is_found_among_others() -> None:
    photos = [coloured(ADA), coloured(BOB, ADA), coloured(NOBODY), coloured(ADA, NOBODY)]
    person = Person.in_photos(photos, WHO)
    torch.testing.assert_close(
        person.embeddings[:, 0] / person.embeddings[:, 1], torch.full((3,), 10.0)
    )
    face = person.find(coloured(BOB, ADA), WHO)
    assert face is not None and float(face.box[0]) == SIDE
    assert person.find(coloured(NOBODY), WHO) is None
    with pytest.raises(InputError, match="No face"):
        Person.in_photos([coloured(NOBODY)], WHO)


def test_the_own_figure_leaves_each_photo_out() -> None:
    # Cosines: 0.6 of the first to each of two equal ones, which are alike by 1.
    person = Person(torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.6, 0.8]]))
    each = torch.tensor([0.6, 0.8, 0.8])
    assert person.own == pytest.approx(float(each.mean()))
    assert person.spread == pytest.approx(float(each.std()))
    alone = Person(torch.tensor([[3.0, 4.0]]))
    assert (alone.own, alone.spread) == (1, 0)


@pytest.mark.parametrize(
    ("embeddings", "match"), [(torch.ones(2), r"\(N, D\)"), (torch.eye(2), "one person")]
)
def test_what_is_no_person_is_refused(embeddings, match) -> None:
    with pytest.raises(InputError, match=match):
        Person(embeddings)


def test_identity_is_a_share_of_the_own_figure() -> None:
    person = Person(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))  # own is 0.6
    pictures = [coloured(RED), coloured(NOBODY), coloured((0.0, 1.0, 0.0), RED)]
    report = measure_identity(pictures, person, WHO)
    # Red has cosines 1 and 0.6 to the photos; nobody counts as 0; of two faces red is the nearer.
    assert report.shares == pytest.approx((0.8 / 0.6, 0, 0.8 / 0.6))
    assert report.share == pytest.approx(2 / 3 * 0.8 / 0.6)
    assert report.spread == pytest.approx(0.8 / 0.6 / math.sqrt(3))
    assert report.pictures[1] is None and "No face was found in 1 picture" in str(report)
    assert "0.89 ± 0.77" in str(report) and "0.60 ± 0.00" in str(report)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["share"] == pytest.approx(report.share) and data["photos"] == 2
    with pytest.raises(InputError, match="no pictures"):
        measure_identity([], person, WHO)


def test_a_single_picture_has_no_spread_and_a_single_photo_no_own_figure() -> None:
    one = measure_identity([coloured(RED)], Person(torch.tensor([[3.0, 4.0]])), WHO)
    assert one.share == pytest.approx(0.6) and one.spread == 0
    assert "Identity 0.60 of" in str(one) and "one photo" in str(one)


def linear(seed: int, name: str = "") -> FaceEmbeddingNetwork:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 112 * 112, 8))
    return FaceEmbeddingNetwork(network, Normalisation((0.5,) * 3, (0.5,) * 3), name=name)


def test_the_report_says_whether_the_embedder_judges_itself() -> None:
    # The same network loaded twice is the same; what it is called does not matter.
    assert same(linear(1, "a"), linear(1, "b")) and not same(linear(1), linear(2))
    assert same(None, None) and not same(linear(1), None)
    assert not same(linear(1), red_and_green)  # of another length
    analyzer = FaceAnalyzer(squares, embedder=linear(1, "one.onnx"))
    person = Person.in_photos([coloured(ADA), coloured(ADA)], analyzer)

    def measured(loss: FaceEmbeddingNetwork | str | None) -> IdentityReport:
        return measure_identity([coloured(ADA)], person, analyzer, loss)

    assert measured(linear(1)).of_the_loss is True and "WARNING" in str(measured(linear(1)))
    assert measured(linear(2)).of_the_loss is False
    assert "one.onnx, another than" in str(measured(linear(2)))
    assert measured("one.onnx").of_the_loss is True  # as an adapter tells it
    assert measured("another.onnx").of_the_loss is False and measured("").of_the_loss is None
    assert measured(None).of_the_loss is None and "Unknown whether" in str(measured(None))


@pytest.mark.gpu
def test_a_embedder_that_training_left_on_the_gpu() -> None:
    analyzer = FaceAnalyzer(squares, embedder=linear(1).cuda())
    person = Person.in_photos([coloured(ADA), coloured(ADA)], analyzer)
    report = measure_identity([coloured(ADA)], person, analyzer, linear(1))
    assert report.of_the_loss is True and report.share == pytest.approx(1, abs=1e-3)


def test_real_photos_of_the_person_and_of_others(shared_assets) -> None:
    from magicapture.data.folder import read_picture
    from magicapture.faces.detect import load_detector
    from magicapture.faces.embed import load_face_embedder

    face, photos = shared_assets / "face", shared_assets / "photos"
    embedder = load_face_embedder(face / "foamliu_MobileFaceNet.onnx", "imagenet")
    analyzer = FaceAnalyzer(load_detector(face / "yunet_s_640_640.onnx"), None, embedder)

    def read(names: list[str]) -> list[Tensor]:
        return [read_picture(photos / name).image for name in names]

    files = [f"person/foreground__{n:02}.jpg" for n in (2, 3, 4, 6, 7)]
    person = Person.in_photos(read(files[:4]), analyzer)
    own = measure_identity(read(files[4:]), person, analyzer)
    others = measure_identity(read(["styles/Gentleman.jpg", "styles/Kimono.jpg"]), person, analyzer)
    assert own.share > 0.8 and abs(others.share) < 0.3
    assert own.embedder == "foamliu_MobileFaceNet.onnx"
