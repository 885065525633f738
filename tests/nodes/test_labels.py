"""Preview Labels as the executor runs it, on drawn faces."""

from __future__ import annotations

import pytest
import torch

PAIR = (1_000_007, 1_000_042)


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def dolls(nodes):
    """A drawn person's photos and a style's portraits, with their masks."""
    return nodes.DrawPaperdollPhotos.execute(*PAIR, count=3).args[:2]


@pytest.fixture
def small(pack):
    """The recipe magicapture at the dolls' size."""
    recipes = pack("magicapture.recipes")
    return recipes.miniature(recipes.recipe())


def test_it_shows_and_tells_what_training_is_given(pack, nodes, dolls, small):
    person, style = dolls
    sheet, report = nodes.PreviewLabels.execute(person, style, small).args
    labels = pack("magicapture.labels")
    made = labels.of_recipe(style, person, small)
    assert report == labels.report(made)
    assert torch.equal(sheet[0], labels.label_sheet(made).movedim(0, -1))
    cells = small.resolution // 8
    taught = labels.with_faces_of(style, person, small.labels, cells=cells)
    assert all(torch.equal(a.image, b.image) for a, b in zip(taught, made.references, strict=True))
    assert "of the portrait's; " in report and "labels show the person" in report


def test_the_recipe_decides(pack, nodes, dolls, small):
    person, style = dolls
    change = pack("magicapture.recipes").changed
    far = nodes.PreviewLabels.execute(person, style, change(small, {"labels.nearness": 10.0}))[1]
    every = min(small.labels.photos, len(person)) * len(style)
    assert f"{every} of {every} labels show the person" in far
    none = nodes.PreviewLabels.execute(person, style, change(small, {"labels.nearness": 0.0}))[1]
    assert f"0 of {len(style)} labels show the person" in none
    assert "no photo is near in pose: its own face stays and is not taught" in none
    assert none.count("up to 0 is near") == len(style)
    paper = nodes.PreviewLabels.execute(person, style, pack("magicapture.recipes").recipe("paper"))
    assert "The recipe paper has the pseudo_label portrait" in paper[1]


def test_without_a_recipe_it_is_the_default(pack, nodes, dolls):
    default = pack("magicapture.recipes").recipe()
    with_it, without = (
        nodes.PreviewLabels.execute(*dolls, *more).args for more in ((default,), ())
    )
    assert torch.equal(with_it[0], without[0]) and with_it[1] == without[1]


@pytest.mark.parametrize("name", ["person", "style"])
def test_photos_without_masks_are_named_with_their_input(pack, nodes, dolls, name):
    none = pack("nodes.references").NO_FOLDER
    bare = nodes.LoadPhotoSet.execute([none], [torch.rand(2, 64, 64, 3)], None, [""])[0]
    given = {"person": dolls[0], "style": dolls[1], name: bare}
    message = f"Preview Labels: The input '{name}' has no mask of the face in image 1, image 2"
    with pytest.raises(pack("magicapture.errors").InputError, match=message):
        nodes.PreviewLabels.execute(**given)


def test_masks_alone_are_enough(pack, nodes, dolls, small):
    person, style = (
        pack("magicapture.data").ReferenceSet.of(
            references.images, face_masks=[photo.face_mask for photo in references]
        )
        for references in dolls
    )
    report = nodes.PreviewLabels.execute(person, style, small)[1]
    assert "labels show the person" in report


def test_an_empty_mask_is_told(pack, nodes, dolls):
    person = pack("magicapture.data").ReferenceSet.of(
        torch.rand(2, 3, 64, 64), face_masks=[torch.zeros(1, 64, 64)] * 2
    )
    message = "Preview Labels: The input 'person' has no mask of the face in image 1, image 2"
    with pytest.raises(pack("magicapture.errors").InputError, match=message):
        nodes.PreviewLabels.execute(person, dolls[1])
