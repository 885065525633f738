import dataclasses

import pytest
import torch

from magicapture.data import ReferenceSet, fingerprint
from magicapture.errors import InputError

IMAGE = torch.zeros(3, 64, 80)


def test_what_is_unknown_is_none_for_every_photo():
    references = ReferenceSet([IMAGE, IMAGE])
    assert len(references) == 2
    assert references.masks == references.landmarks == references.captions == (None, None)
    assert references.names == ("image 1", "image 2")
    assert len(ReferenceSet(())) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"captions": ("one",)},
        {"masks": (None,) * 3},
        {"landmarks": (torch.zeros(5, 2),)},
        {"names": ("a",)},
    ],
)
def test_counts_must_agree(fields):
    with pytest.raises(InputError, match=f"{next(iter(fields))} for 2 photos"):
        ReferenceSet((IMAGE, IMAGE), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": (IMAGE, IMAGE[None])}, r"image 2: the picture.*\(1, 3, 64, 80\).*\(3,H,W\)"),
        ({"images": (IMAGE, IMAGE.byte())}, "image 2: the picture is torch.uint8"),
        ({"images": (IMAGE, IMAGE.movedim(0, -1))}, r"\(64, 80, 3\)"),
        ({"masks": (torch.zeros(64, 80), None)}, r"image 1: the mask.*expected.*\(1,H,W\)"),
        ({"landmarks": (None, torch.zeros(2, 5))}, r"image 2: the face's landmarks.*\(5,2\)"),
    ],
)
def test_shapes_must_fit(fields, message):
    with pytest.raises(InputError, match=message):
        ReferenceSet(**{"images": (IMAGE, IMAGE), **fields})


def test_a_role_turns_the_masks_and_the_face_stays(reference_set):
    subject = reference_set()
    style = subject.with_role("style")
    assert style.role == "style"
    for i in range(len(subject)):
        assert torch.equal(style.masks[i], 1 - subject.masks[i])
        assert torch.equal(style.face(i), subject.masks[i])
    assert torch.equal(style.with_role("subject").masks[0], subject.masks[0])
    assert style.with_role("style").masks[0].equal(style.masks[0])
    assert ReferenceSet((IMAGE,)).with_role("style").masks == (None,)


def test_the_fingerprint_sees_all_but_names(reference_set):
    base = reference_set()
    known = fingerprint(base)
    assert known == fingerprint(reference_set())
    assert known == fingerprint(dataclasses.replace(base, names=("a", "b", "c"), warnings=("x",)))

    image = base.images[1].clone()
    image[0, 5, 5] += 1 / 255
    mask = base.masks[2].clone()
    mask[0, 0, 0] = 1
    points = torch.rand(5, 2)
    others = [
        {"images": (base.images[0], image, base.images[2])},
        {"images": (base.images[1], base.images[0], base.images[2])},
        {"masks": (*base.masks[:2], mask)},
        {"masks": (*base.masks[:2], None)},
        {"landmarks": (points, None, None)},
        {"landmarks": (None, points, None)},
        {"captions": ("a", None, None)},
        {"captions": (None, "a", None)},
        {"role": "style"},
    ]
    hashes = {fingerprint(dataclasses.replace(base, **fields)) for fields in others}
    assert len(hashes | {known}) == len(others) + 1


def test_the_fingerprint_knows_the_shape():
    pixels = torch.rand(3, 64, 128)
    one, other = ReferenceSet((pixels,)), ReferenceSet((pixels.reshape(3, 128, 64),))
    assert fingerprint(one) != fingerprint(other)
