from dataclasses import replace

import pytest
import torch

from magicapture.data import Photo, ReferenceSet, fingerprint
from magicapture.errors import InputError
from magicapture.faces.align import landmarks_from_mask

IMAGE = torch.zeros(3, 64, 80)


def test_what_is_unknown_is_none_for_every_photo():
    references = ReferenceSet.of([IMAGE, IMAGE])
    assert len(references) == 2
    for photo in references:
        assert photo.face_mask is photo.landmarks is photo.caption is None
    assert references.names == ("image 1", "image 2")
    assert len(ReferenceSet(())) == 0


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"captions": ("one",)}, "There is 1 caption for 2 photos; give one for each"),
        ({"face_masks": (None,)}, "There is 1 face mask for 2 photos"),
        ({"face_masks": (None,) * 3}, "There are 3 face masks for 2 photos"),
        ({"landmarks": (torch.zeros(5, 2),)}, "There is 1 set of landmarks for 2 photos"),
        ({"names": ("a",)}, "There is 1 name for 2 photos"),
    ],
)
def test_counts_must_agree(known, expected):
    with pytest.raises(InputError, match=expected):
        ReferenceSet.of((IMAGE, IMAGE), **known)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": IMAGE[None]}, r"a.jpg: the picture.*\(1, 3, 64, 80\).*\(3,H,W\)"),
        ({"image": IMAGE.byte()}, "a.jpg: the picture is torch.uint8"),
        ({"image": IMAGE.movedim(0, -1)}, r"\(64, 80, 3\)"),
        ({"face_mask": torch.zeros(64, 80)}, r"a.jpg: the mask.*expected.*\(1,H,W\)"),
        ({"landmarks": torch.zeros(2, 5)}, r"a.jpg: the face's landmarks.*\(5,2\)"),
        ({"face_mask": torch.zeros(1, 80, 64)}, "a.jpg: the mask is 64x80.*picture 80x64"),
    ],
)
def test_shapes_must_fit(fields, message):
    with pytest.raises(InputError, match=message):
        Photo(**{"image": IMAGE, "name": "a.jpg", **fields})


@pytest.mark.parametrize("scale", [0.25, 0.5, 2])
def test_a_mask_of_another_size_is_brought_to_the_photos(disc, scale):
    face = disc(512, 512, 300, 250, 60)
    side = int(512 * scale)
    other = disc(side, side, 300 * scale, 250 * scale, 60 * scale)
    photo = Photo(torch.rand(3, 512, 512), other)
    assert photo.face_mask.shape == (1, 512, 512)
    assert float((photo.face_mask - face).abs().mean()) < 0.005
    points = landmarks_from_mask(photo.face_mask)
    assert bool((photo.face_mask[0][points[:, 1].long(), points[:, 0].long()] == 1).all())
    torch.testing.assert_close(points, landmarks_from_mask(face), atol=6, rtol=0)


def test_the_fingerprint_sees_all_but_names(reference_set):
    base = reference_set()
    known = fingerprint(base)
    assert known == fingerprint(reference_set())
    renamed = base.known("names", ("a", "b", "c"))
    assert known == fingerprint(replace(renamed, warnings=("x",)))

    first, second, third = base.photos
    image, mask, points = second.image.clone(), third.face_mask.clone(), torch.rand(5, 2)
    image[0, 5, 5] += 1 / 255
    mask[0, 0, 0] = 1
    others = [
        (first, replace(second, image=image), third),
        (second, first, third),
        (first, second, replace(third, face_mask=mask)),
        (first, second, replace(third, face_mask=None)),
        (replace(first, landmarks=points), second, third),
        (first, replace(second, landmarks=points), third),
        (replace(first, caption="a"), second, third),
        (first, replace(second, caption="a"), third),
    ]
    hashes = {fingerprint(ReferenceSet(photos)) for photos in others}
    assert len(hashes | {known}) == len(others) + 1


def test_the_fingerprint_knows_the_shape():
    pixels = torch.rand(3, 64, 128)
    one, other = ReferenceSet.of([pixels]), ReferenceSet.of([pixels.reshape(3, 128, 64)])
    assert fingerprint(one) != fingerprint(other)
