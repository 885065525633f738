from dataclasses import replace

import pytest
import torch

from magicapture.config import Phase, Rates, Recipe, Weights
from magicapture.data import Learnable, ReferenceSet, check_photos
from magicapture.data.checks import check_apart
from magicapture.errors import InputError
from magicapture.tokens import Concept

ADA = Concept("ada", "subject")
FILM = Concept("film", "style")
RECIPE = Recipe(resolution=96)
UNMASKED = Recipe(resolution=96, masked=False)
POINTS = torch.tensor([[38.0, 35], [58, 35], [48, 42], [40, 50], [56, 50]])


def check(references, concept=ADA, recipe=RECIPE):
    return check_photos(Learnable(concept, references), recipe)


def problems(references, concept=ADA, recipe=RECIPE):
    with pytest.raises(InputError) as caught:
        check(references, concept, recipe)
    return str(caught.value)


def swap(references, index, **fields):
    """The set with one photo changed."""
    photos = [*references.photos]
    photos[index] = replace(photos[index], **fields)
    return replace(references, photos=tuple(photos))


@pytest.mark.parametrize("concept", [ADA, FILM])
def test_a_good_set_passes_without_a_word(reference_set, concept):
    references = reference_set(landmarks=(POINTS,) * 3)
    assert check(references, concept, RECIPE) == ()


def test_too_few_photos(reference_set):
    assert "are no photos for <ada>; expected 2 or more" in problems(ReferenceSet(()))
    assert "is 1 photo for <ada>; expected 2" in problems(reference_set(1))
    assert check(reference_set(1), ADA, replace(RECIPE, min_images=1)) == ()
    assert "are no photos" in problems(ReferenceSet(()), recipe=replace(RECIPE, min_images=1))


def test_missing_masks_are_listed_once_and_only_matter_where_used(reference_set):
    references = reference_set(face_masks=(None, reference_set().photos[1].face_mask, None))
    message = problems(references)
    assert "- image 1, image 3: no mask of the face. Make one" in message
    assert "image 2" not in message
    assert check(references, ADA, UNMASKED) == ()

    attention = Phase("a", 1, Rates(unet=1e-4), Weights(attention=1))
    assert "no mask" in problems(references, recipe=replace(UNMASKED, phases=(attention,)))


@pytest.mark.parametrize("concept", [ADA, FILM])
def test_a_mask_without_a_face(reference_set, concept):
    references = swap(reference_set(), 1, face_mask=torch.zeros(1, 88, 96))
    assert "image 2: the mask is empty: it marks no face" in problems(references, concept)
    assert check(references, concept, UNMASKED) == ()


@pytest.mark.parametrize("concept", [ADA, FILM])
def test_a_mask_that_is_all_face(reference_set, concept):
    message = problems(swap(reference_set(), 1, face_mask=torch.ones(1, 88, 96)), concept)
    assert "image 2: the mask is full" in message and "Invert it" in message


def test_the_same_pictures_for_both(reference_set):
    person, film = Learnable(ADA, reference_set()), Learnable(FILM, reference_set())
    with pytest.raises(InputError, match="<ada> and <film> are given the same pictures"):
        check_apart(person, film)
    mixed = Learnable(FILM, swap(reference_set(), 0, image=torch.rand(3, 80, 96)))
    assert [text.partition(":")[0] for text in check_apart(person, mixed)] == ["image 2", "image 3"]
    other = ReferenceSet.of(torch.rand(3, 3, 80, 96))
    assert check_apart(person, Learnable(FILM, other)) == ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "has NaN or infinite values"),
        (float("inf"), "has NaN or infinite values"),
        (255.0, r"go from .* to 255; expected 0 to 1. Divide them by 255"),
        (-1.0, r"go from -1 to .*expected 0 to 1. Scale them"),
    ],
)
@pytest.mark.parametrize("field", ["image", "face_mask"])
def test_values_out_of_range(reference_set, field, value, message):
    references = reference_set()
    bad = getattr(references.photos[2], field).clone()
    bad[0, 3, 3] = value
    references = swap(references, 2, **{field: bad})
    what = {"image": "picture", "face_mask": "mask"}[field]
    with pytest.raises(InputError, match=rf"image 3: the {what}('s values)? {message}"):
        check(references, ADA, RECIPE)


def test_the_overshoot_of_a_sharp_resize_is_fine(reference_set):
    references = reference_set()
    bad = references.images[0].clone()
    bad[0, 0, 0], bad[0, 0, 1] = 1.005, -0.005
    references = swap(references, 0, image=bad)
    assert check(references, ADA, RECIPE) == ()


def test_a_tiny_photo_is_refused_and_a_small_one_warned_about(reference_set):
    images = torch.rand(3, 63, 200), torch.rand(3, 64, 64)
    tiny = ReferenceSet.of(images, names=("a.jpg", "b.jpg"))
    assert "- a.jpg: the picture is 200x63 pixels" in problems(tiny, recipe=UNMASKED)
    assert "b.jpg" not in problems(tiny, recipe=UNMASKED)

    small = reference_set()
    assert check(small, ADA, replace(RECIPE, resolution=160)) == ()
    warnings = check(small, ADA, replace(RECIPE, resolution=168))
    assert len(warnings) == 1 and "image 1: the picture is 96x80" in warnings[0]


def test_duplicates_are_warned_about_once(reference_set, caplog):
    first, second, _ = reference_set().images
    references = ReferenceSet.of((first, second, first.clone()))
    warnings = check(replace(references, warnings=("from loading",)), ADA, UNMASKED)
    assert warnings[0] == "from loading"
    assert "image 3: it is the same picture as image 1" in warnings[1] and len(warnings) == 2
    assert not caplog.messages  # whoever asked is told, and logs it or shows it


@pytest.mark.parametrize("point", [(96.0, 10.0), (10.0, 80.0), (-1.0, 5.0), (float("nan"), 5.0)])
def test_landmarks_outside_the_picture(reference_set, point):
    points = POINTS.clone()
    points[2] = torch.tensor(point)
    message = problems(reference_set(landmarks=(points, None, None)))
    assert "image 1: the face's landmarks" in message and "96x80 pixels" in message


def test_landmarks_of_the_wrong_order_are_told_from_a_rolled_head(reference_set):
    mirrored = POINTS[[1, 0, 2, 4, 3]]
    assert "in another order" in problems(reference_set(landmarks=(mirrored, None, None)))
    centre = torch.tensor([48.0, 40])
    for degrees in (90, 135, 180, 270):
        a = torch.deg2rad(torch.tensor(float(degrees)))
        turn = torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])
        rolled = (POINTS - centre) @ turn.T + centre
        references = reference_set(landmarks=(rolled, None, None))
        assert check(references, ADA, RECIPE) == ()


def test_every_problem_is_told_at_once(reference_set):
    references = reference_set()
    dark = torch.full_like(references.images[0], float("nan"))
    references = references.known("names", ("a.jpg", "b.jpg", "c.jpg"))
    references = swap(swap(references, 0, image=dark), 2, face_mask=None)
    message = problems(references)
    assert "- a.jpg: the picture has NaN" in message
    assert "- c.jpg: no mask" in message
