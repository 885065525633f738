import logging
from dataclasses import replace

import pytest
import torch

from magicapture.config import Phase, Rates, Recipe, Weights
from magicapture.data import ReferenceSet, check_references
from magicapture.errors import InputError
from magicapture.tokens import Concept

ADA = Concept("ada", "subject")
FILM = Concept("film", "style")
RECIPE = Recipe(resolution=96)
UNMASKED = Recipe(resolution=96, masked=False)
POINTS = torch.tensor([[38.0, 35], [58, 35], [48, 42], [40, 50], [56, 50]])


def problems(references, concept=ADA, recipe=RECIPE):
    with pytest.raises(InputError) as caught:
        check_references(references, concept, recipe)
    return str(caught.value)


def swap(values, index, value):
    return (*values[:index], value, *values[index + 1 :])


@pytest.mark.parametrize("concept", [ADA, FILM])
def test_a_good_set_passes_without_a_word(reference_set, concept):
    references = reference_set(role=concept.role, landmarks=(POINTS,) * 3)
    assert check_references(references, concept, RECIPE) == ()


def test_too_few_photos(reference_set):
    assert "are no photos for <ada>; expected 2 or more" in problems(ReferenceSet(()))
    assert "is 1 photo for <ada>; expected 2" in problems(reference_set(1))
    assert check_references(reference_set(1), ADA, replace(RECIPE, min_images=1)) == ()
    assert "are no photos" in problems(ReferenceSet(()), recipe=replace(RECIPE, min_images=1))


def test_photos_of_the_other_role(reference_set):
    message = problems(reference_set(), FILM)
    assert "given as those of a subject, but it is a style" in message


def test_missing_masks_are_listed_once_and_only_matter_where_used(reference_set):
    references = reference_set(masks=(None, reference_set().masks[1], None))
    message = problems(references)
    assert "- image 1, image 3: no mask of the face. Give one, or turn masks off" in message
    assert "image 2" not in message
    assert check_references(references, ADA, UNMASKED) == ()

    attention = Phase("a", 1, Rates(unet=1e-4), Weights(attention=1))
    assert "no mask" in problems(references, recipe=replace(UNMASKED, phases=(attention,)))


@pytest.mark.parametrize(("concept", "fill"), [(ADA, 0.0), (FILM, 1.0)])
def test_a_mask_without_a_face(reference_set, concept, fill):
    references = reference_set(role=concept.role)
    bad = torch.full_like(references.masks[1], fill)
    references = replace(references, masks=swap(references.masks, 1, bad))
    assert "image 2: the mask is empty: it marks no face" in problems(references, concept)
    assert check_references(references, concept, UNMASKED) == ()


@pytest.mark.parametrize(("concept", "fill"), [(ADA, 1.0), (FILM, 0.0)])
def test_a_mask_that_is_all_face(reference_set, concept, fill):
    references = reference_set(role=concept.role)
    bad = torch.full_like(references.masks[1], fill)
    references = replace(references, masks=swap(references.masks, 1, bad))
    message = problems(references, concept)
    assert "image 2: the mask is full" in message and "Invert it" in message


def test_a_mask_of_another_size(reference_set, disc):
    references = reference_set()
    larger = replace(references, masks=swap(references.masks, 0, disc(160, 192, 96, 80, 32)))
    (warning,) = check_references(larger, ADA, RECIPE)
    assert "image 1: the mask is 192x160 pixels and the picture 96x80" in warning

    turned = replace(references, masks=swap(references.masks, 0, disc(96, 80, 40, 48, 16)))
    for recipe in (RECIPE, UNMASKED):
        assert "image 1: the mask is 80x96 pixels and the picture 96x80" in problems(
            turned, recipe=recipe
        )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "has NaN or infinite values"),
        (float("inf"), "has NaN or infinite values"),
        (255.0, r"go from .* to 255; expected 0 to 1. Divide them by 255"),
        (-1.0, r"go from -1 to .*expected 0 to 1. Scale them"),
    ],
)
@pytest.mark.parametrize("field", ["images", "masks"])
def test_values_out_of_range(reference_set, field, value, message):
    references = reference_set()
    bad = getattr(references, field)[2].clone()
    bad[0, 3, 3] = value
    references = replace(references, **{field: swap(getattr(references, field), 2, bad)})
    what = {"images": "picture", "masks": "mask"}[field]
    with pytest.raises(InputError, match=rf"image 3: the {what}('s values)? {message}"):
        check_references(references, ADA, RECIPE)


def test_the_overshoot_of_a_sharp_resize_is_fine(reference_set):
    references = reference_set()
    bad = references.images[0].clone()
    bad[0, 0, 0], bad[0, 0, 1] = 1.005, -0.005
    references = replace(references, images=swap(references.images, 0, bad))
    assert check_references(references, ADA, RECIPE) == ()


def test_a_tiny_photo_is_refused_and_a_small_one_warned_about(reference_set):
    tiny = ReferenceSet((torch.rand(3, 63, 200), torch.rand(3, 64, 64)), names=("a.jpg", "b.jpg"))
    assert "- a.jpg: the picture is 200x63 pixels" in problems(tiny, recipe=UNMASKED)
    assert "b.jpg" not in problems(tiny, recipe=UNMASKED)

    small = reference_set()
    assert check_references(small, ADA, replace(RECIPE, resolution=160)) == ()
    warnings = check_references(small, ADA, replace(RECIPE, resolution=168))
    assert len(warnings) == 1 and "image 1: the picture is 96x80" in warnings[0]


def test_duplicates_are_warned_about(reference_set, caplog):
    references = reference_set()
    images = (references.images[0], references.images[1], references.images[0].clone())
    references = replace(references, images=images, masks=(), warnings=("from loading",))
    with caplog.at_level(logging.WARNING):
        warnings = check_references(references, ADA, UNMASKED)
    assert warnings[0] == "from loading"
    assert "image 3: it is the same picture as image 1" in warnings[1] and len(warnings) == 2
    assert not caplog.messages, "who gets the warnings says them"


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
        assert check_references(references, ADA, RECIPE) == ()


def test_every_problem_is_told_at_once(reference_set):
    references = reference_set()
    dark = torch.full_like(references.images[0], float("nan"))
    references = replace(
        references,
        images=swap(references.images, 0, dark),
        masks=swap(references.masks, 2, None),
        names=("a.jpg", "b.jpg", "c.jpg"),
    )
    message = problems(references)
    assert "- a.jpg: the picture has NaN" in message
    assert "- c.jpg: no mask" in message
