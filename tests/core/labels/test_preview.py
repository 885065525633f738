"""The look at labels before training: what is said of each, and what the sheet shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magicapture.config import LabelSettings
from magicapture.data import ReferenceSet
from magicapture.errors import InputError
from magicapture.faces.align import landmarks_from_mask
from magicapture.labels import LabelSet, label_sheet, labelled, of_recipe, report
from magicapture.labels.seams import steepness
from magicapture.recipes import changed, recipe

POINTS = torch.tensor([[20.0, 24.0], [43.0, 24.0], [32.0, 34.0], [24.0, 44.0], [40.0, 44.0]])
TURNED = POINTS + torch.tensor([[0.0, 0.0], [0.0, 0.0], [12.0, 0.0], [6.0, 0.0], [6.0, 0.0]])


def disc(x: float = 32, y: float = 32, radius: float = 16) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return ((columns - x).square() + (rows - y).square() <= radius**2).float()[None]


def some(*points: Tensor, name: str, mask: Tensor | None = None) -> ReferenceSet:
    count = len(points)
    return ReferenceSet.of(
        torch.rand(count, 3, 64, 64),
        face_masks=[disc() if mask is None else mask] * count,
        landmarks=points,
        names=[f"{name}{i}.png" for i in range(count)],
    )


def mixed() -> LabelSet:
    """A portrait with one near photo of two, and one that no photo is near to."""
    settings = LabelSettings(photos=2, nearness=0.1)
    source = some(POINTS, TURNED + torch.tensor([3.0, -2.0]), name="photo")
    return labelled(some(POINTS, TURNED * 1.0, name="portrait"), source.only([0]), settings)


def test_each_label_knows_its_portrait_and_its_photo() -> None:
    near, far = mixed().labels
    assert near.laid_in and not far.laid_in
    assert (near.portrait.name, near.photo.name) == ("portrait0.png", "photo0.png")
    assert (far.portrait.name, far.photo.name) == ("portrait1.png", "photo0.png")
    assert near.match.pose < 1e-4 < 0.1 < far.match.pose
    assert 0 < near.share_taught < 1 and far.share_taught == 0


def test_the_report_says_how_near_and_why_not() -> None:
    made = mixed()
    near, far, *rest = report(made).splitlines()
    assert near.startswith("portrait0.png with photo0.png: the person's face is laid in, 0.00 away")
    assert f"the seam's gradient is {made.labels[0].steepness:.2f} of the portrait's" in near
    assert far.startswith("portrait1.png: no photo is near in pose: its own face stays and is not")
    pose = made.labels[1].match.pose
    assert far.endswith(f"the nearest photo is photo0.png, {pose:.2f} away, up to 0.1 is near")
    assert rest[0].startswith("1 of 2 labels show the person. Seams' gradient: ")


def test_faces_that_do_not_meet_are_not_called_far() -> None:
    corner = some(POINTS, name="photo", mask=disc(2, 62, 3))
    made = labelled(some(POINTS, name="portrait"), corner)
    assert "the masks of the two faces do not meet" in report(made)
    assert "no photo is near" not in report(made)
    assert "Seams' gradient" not in report(made), "there is none to speak of"


def test_the_sheet_shows_portrait_photo_and_label_side_by_side() -> None:
    made = mixed()
    alone = LabelSet(made.labels[:1], made.settings)
    cell, side = 64 + 16, 64
    whole = label_sheet(alone, side=side)
    assert whole.shape[-1] == 3 * cell and label_sheet(made, side=side).shape[-1] == 3 * cell
    three = LabelSet(made.labels + made.labels[:1], made.settings)
    assert label_sheet(three, side=side).shape[-1] == 6 * cell
    tiles = [whole[:, 8 : 8 + side, 8 + i * cell : 8 + side + i * cell] for i in range(3)]
    label = made.labels[0]
    for tile, image in zip(tiles[:2], (label.portrait.image, label.photo.image), strict=True):
        torch.testing.assert_close(tile, image, atol=1 / 255, rtol=0)
    assert label.shown.taught is not None
    taught = (label.shown.taught[0] == 1).expand(3, -1, -1)
    torch.testing.assert_close(tiles[2][taught], label.shown.image[taught], atol=1 / 255, rtol=0)
    untaught = 1 - label.shown.taught[0] > 0
    red, green, blue = (channel[untaught].mean() for channel in tiles[2])
    assert blue > red > green, "violet lies over what is not taught"


def test_a_seam_twice_as_steep_is_two() -> None:
    slope = torch.linspace(0.2, 0.4, 64).expand(3, 64, 64)
    assert steepness(2 * slope, slope, disc()) == pytest.approx(2, rel=1e-5)
    assert steepness(slope, slope, disc()) == pytest.approx(1)


def test_a_step_at_the_faces_edge_is_seen_and_one_inside_is_not() -> None:
    slope = torch.linspace(0.2, 0.4, 64).expand(3, 64, 64)
    assert steepness(torch.lerp(slope, 1 - slope, disc()), slope, disc()) > 3
    assert steepness(torch.lerp(slope, 1 - slope, disc(radius=8)), slope, disc()) == 1


def test_labels_follow_the_recipe() -> None:
    portraits, source = some(POINTS, name="portrait"), some(POINTS, name="photo")
    narrow, wide = (
        of_recipe(portraits, source, changed(recipe(), {"labels.seam": seam, "resolution": 64}))
        for seam in (0.5, 1.0)
    )
    assert narrow.labels[0].share_taught > wide.labels[0].share_taught
    assert not any("recipe" in warning for warning in narrow.warnings)
    paper = of_recipe(portraits, source, recipe("paper"))
    assert "The recipe paper has the pseudo_label portrait" in report(paper)


def test_landmarks_are_estimated_where_only_masks_are_known() -> None:
    bare = ReferenceSet.of(torch.rand(1, 3, 64, 64), face_masks=[disc()])
    (label,) = labelled(bare, bare).labels
    assert label.laid_in and label.portrait.landmarks is not None
    torch.testing.assert_close(label.portrait.landmarks, landmarks_from_mask(disc()))


def test_without_a_mask_it_says_what_to_do() -> None:
    bare = ReferenceSet.of(torch.rand(1, 3, 64, 64))
    with pytest.raises(InputError, match="pseudo_label"):
        of_recipe(bare, bare, recipe())
