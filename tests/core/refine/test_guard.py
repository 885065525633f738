"""The identity guard against closed forms, and on a real face."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.faces.align import ARCFACE_TEMPLATE, FFHQ_TEMPLATE, similarity, warp
from magicapture.faces.embed import load_face_embedder
from magicapture.person import Person
from magicapture.refine.guard import guard_identity
from magicapture.refine.paste import cut_out, drawn_mask, put_back

POINTS = ARCFACE_TEMPLATE + 4
RED, GREEN = torch.zeros(3, 120, 120), torch.zeros(3, 120, 120)
RED[0], GREEN[1] = 1, 1
PERSON = Person(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))  # two photos, alike by a cosine of 1


def red_and_green(faces: Tensor) -> Tensor:
    """A face embedder that sees how red and how green a face is."""
    return faces[:, :2].mean(dim=(2, 3))


@pytest.mark.parametrize("tolerance", [0.001, 0.03, 0.2])
def test_the_strength_is_the_largest_that_keeps_the_person(tolerance) -> None:
    blend, report = guard_identity(RED, GREEN, POINTS, red_and_green, PERSON, tolerance)
    # The blend is (1 - s, s), whose cosine to (1, 0) is that of the angle atan(s / (1 - s)).
    angle = math.acos(1 - tolerance)
    strength = math.tan(angle) / (1 + math.tan(angle))
    assert strength - 1 / 900 < report.strength <= strength + 1e-5
    assert report.before - report.kept <= tolerance + 1e-6
    torch.testing.assert_close(blend, torch.lerp(RED, GREEN, report.strength))
    assert (report.before, report.own) == pytest.approx((1, 1), abs=1e-5)
    assert report.after == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("after", [RED, 0.5 * RED, RED + 0.1 * GREEN])
def test_what_costs_little_is_kept_whole(after) -> None:
    blend, report = guard_identity(RED, after, POINTS, red_and_green, PERSON, 0.03)
    assert report.strength == 1 and torch.equal(blend, after)
    assert "Kept whole" in str(report)


def test_no_cost_allowed_takes_the_picture_before() -> None:
    blend, report = guard_identity(RED, GREEN, POINTS, red_and_green, PERSON, 0)
    assert report.strength < 0.02 and report.kept == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(blend, RED, atol=0.02, rtol=0)


def test_a_dip_between_two_likenesses_is_no_limit() -> None:
    """Half way the face is a stranger's, whole it is the person's again: whole is kept."""

    def dips(faces: Tensor) -> Tensor:
        share = faces[:, 1].mean(dim=(1, 2))
        return torch.stack([(2 * share - 1).abs(), 1 - (2 * share - 1).abs()], dim=1)

    _, report = guard_identity(RED, GREEN, POINTS, dips, PERSON, 0.05)
    assert report.strength == 1


def test_cost_is_a_share_of_the_persons_own_figure() -> None:
    photos = Person(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))  # alike by 0.6
    _, report = guard_identity(RED, GREEN, POINTS, red_and_green, photos, 0.1)
    assert report.own == pytest.approx(0.6)
    assert report.before == pytest.approx(0.8)
    # The mean of the two cosines falls to 0.4, by more than 0.06, so it is stopped where it does.
    assert report.before - report.kept == pytest.approx(0.06, abs=2e-3)
    assert "133.3 %" in str(report) and f"{report.strength:.2f}" in str(report)
    assert report.as_dict()["strength"] == report.strength


def test_one_photo_of_the_person_will_do() -> None:
    _, report = guard_identity(
        RED, GREEN, POINTS, red_and_green, Person(PERSON.embeddings[:1]), 0.03
    )
    assert report.own == 1 and 0 < report.strength < 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"after": GREEN[:, :60]}, "one size"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, match) -> None:
    given = {"before": RED, "after": GREEN, "person": PERSON, "tolerance": 0.03, **change}
    with pytest.raises(InputError, match=match):
        guard_identity(landmarks=POINTS, embedder=red_and_green, **given)


def test_a_real_face_turned_into_anothers_is_brought_back(shared_assets, photo) -> None:
    """A restorer that pastes a mirrored, darker face in the photo's place costs likeness."""
    embedder = load_face_embedder(shared_assets / "face" / "foamliu_MobileFaceNet.onnx", "imagenet")
    image, face = photo
    head, matrix = cut_out(image, face.landmarks)
    stranger = head.roll(30, dims=2) ** 2
    patch = put_back(stranger, drawn_mask(head, FFHQ_TEMPLATE[None]), matrix, image.shape[-2:])
    after = patch.onto(image)
    aligned = warp(image[None], similarity(face.landmarks[None]), antialias=True)
    person = Person(embedder(torch.cat([aligned, aligned.flip(-1)])))
    blend, report = guard_identity(image, after, face.landmarks, embedder, person)
    assert report.after < report.before - 0.1 and 0 < report.strength < 1
    kept = warp(blend[None], similarity(face.landmarks[None]), antialias=True)
    measured = float(person.likeness(embedder(kept)))
    assert measured == pytest.approx(report.kept, abs=1e-3)
    assert report.before - measured <= 0.03 * report.own + 1e-3
    unchanged = (after == image).all(dim=0)
    assert torch.equal(blend[:, unchanged], image[:, unchanged])
