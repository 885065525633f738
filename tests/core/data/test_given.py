"""Masks and landmarks from elsewhere: what each says of the photos, and what is done with it."""

from __future__ import annotations

import pytest
import torch

from magicapture.data import ReferenceSet
from magicapture.data.given import with_landmarks, with_masks
from magicapture.errors import InputError
from magicapture.faces.protocols import Face

SIZE = (80, 64)


@pytest.fixture
def photos():
    return ReferenceSet.of([torch.rand(3, *SIZE) for _ in range(4)])


def marked(*box):
    """A mask (1,80,64) that is 1 in rows and columns from, to."""
    top, bottom, left, right = box
    mask = torch.zeros(1, *SIZE)
    mask[:, top:bottom, left:right] = 1
    return mask


def face(x, y, width=10.0):
    """A face whose landmarks lie around a point."""
    points = torch.tensor([[x - 2, y - 2], [x + 2, y - 2], [x, y], [x - 1, y + 2], [x + 1, y + 2]])
    box = torch.tensor([x - width / 2, y - width / 2, x + width / 2, y + width / 2])
    return Face(box, points, 0.9)


def test_masks_that_say_nothing_or_all_or_the_opposite_are_named(photos):
    good, full = marked(10, 40, 10, 40), torch.ones(1, *SIZE)
    stock_none = torch.zeros(1, 64, 64)  # what ComfyUI's Load Image gives where there is no mask
    given = with_masks(photos, [good, stock_none, full, 1 - good])
    assert [photo.face_mask is None for photo in given] == [False, True, False, False]
    assert torch.equal(given.photos[0].face_mask, good)
    marks_nothing, marks_all, inverted = given.warnings
    assert marks_nothing.startswith("image 2: the mask marks nothing")
    assert marks_all.startswith("image 3: the mask marks the whole picture")
    assert inverted.startswith("image 4: the mask marks all four corners")
    assert with_masks(photos, [good] * 4).warnings == ()


def test_masks_replace_the_folders_own_and_soft_or_resized_ones_fit(photos):
    own = photos.known("face_masks", [marked(0, 20, 0, 20)] * 4)
    soft = torch.nn.functional.avg_pool2d(marked(10, 40, 10, 40), 2)
    given = with_masks(own, [soft * 0.9, soft, soft, torch.zeros(1, *SIZE)])
    assert given.photos[3].face_mask is None
    assert given.photos[0].face_mask.shape == (1, *SIZE)
    assert float(given.photos[0].face_mask.max()) == pytest.approx(0.9)


def test_a_mask_for_each_object_is_told_from_one_for_each_photo(photos):
    with pytest.raises(InputError, match=r"There are 6 face masks for 4 photos.*individual_masks"):
        with_masks(photos, [marked(1, 9, 1, 9)] * 6)
    with pytest.raises(InputError, match="There is 1 face mask for 4 photos; give one for each"):
        with_masks(photos, [marked(1, 9, 1, 9)])
    with pytest.raises(InputError, match="image 1: the mask is 64x32"):
        with_masks(photos, [torch.ones(1, 32, 64).tril()] * 4)


def test_of_several_faces_the_one_in_the_mask_or_else_the_largest(photos):
    small, large = face(15.0, 20.0), face(45.0, 60.0, 24.0)
    masked = with_masks(photos, [marked(10, 30, 5, 25), *[torch.zeros(1, *SIZE)] * 3])
    given = with_landmarks(masked, [(large, small), (small, large), (), (small,)])
    found = [photo.landmarks for photo in given]
    assert torch.equal(found[0], small.landmarks) and torch.equal(found[1], large.landmarks)
    assert found[2] is None and torch.equal(found[3], small.landmarks)
    assert given.warnings[-1] == "image 3: no face is given, so that it has no landmarks."
    missed = with_landmarks(masked, [(large,), (large,), (large,), (large,)])
    assert missed.photos[0].landmarks is None
    assert "image 1: none of the faces given lies in its mask" in missed.warnings[-1]


@pytest.mark.parametrize("count", [1, 5])
def test_faces_of_another_count_of_photos(photos, count):
    with pytest.raises(InputError, match="landmarks for 4 photos"):
        with_landmarks(photos, [(face(20.0, 20.0),)] * count)
