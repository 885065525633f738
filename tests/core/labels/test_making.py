"""Pseudo-labels with the person's face laid in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magicapture.data import ReferenceSet
from magicapture.errors import InputError
from magicapture.labels import with_faces_of
from magicapture.paperdoll import identity_from_seed, pose_from_seed, render, style_from_seed
from magicapture.paperdoll.pairs import references

POINTS = torch.tensor([[20.0, 24.0], [43.0, 24.0], [32.0, 34.0], [24.0, 44.0], [40.0, 44.0]])


def disc(x: float = 32, y: float = 32, radius: float = 16) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return ((columns - x).square() + (rows - y).square() <= radius**2).float()[None]


def luma(image: Tensor) -> Tensor:
    return 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def with_eyes(grey: float) -> Tensor:
    """A grey picture with a black and a white spot in the middle."""
    image = torch.full((3, 64, 64), grey)
    image[:, 30:34, 27:31], image[:, 30:34, 34:38] = 0.0, 1.0
    return image


def sets(source_image: Tensor, portrait: Tensor, shift: float = 0.0) -> tuple[ReferenceSet, ...]:
    source = ReferenceSet.of([source_image], face_masks=[disc()], landmarks=[POINTS])
    moved = POINTS + torch.tensor([shift, 0.0])
    portraits = ReferenceSet.of([portrait], face_masks=[disc(32 + shift)], landmarks=[moved])
    return portraits, source


def test_outside_the_face_the_portrait_is_bit_equal() -> None:
    portraits, source = sets(torch.rand(3, 64, 64), torch.rand(3, 64, 64))
    made = with_faces_of(portraits, source).images[0]
    outside = disc()[0] == 0
    assert torch.equal(made[:, outside], portraits.images[0][:, outside])
    assert not torch.allclose(made, portraits.images[0], atol=0.1)


def test_every_portrait_meets_every_face() -> None:
    _, source = sets(torch.rand(3, 64, 64), torch.rand(3, 64, 64))
    images = torch.rand(3, 64, 64), *source.images
    others = ReferenceSet.of(images, face_masks=(disc(),) * 2, landmarks=(POINTS,) * 2)
    both = ReferenceSet.of(
        torch.rand(3, 3, 64, 64), face_masks=(disc(),) * 3, landmarks=(POINTS,) * 3
    )
    made = with_faces_of(both, others)
    assert len(made) == 6
    for i, j in ((0, 0), (1, 1), (2, 0)):
        alone = with_faces_of(both.only([i]), others.only([j])).images[0]
        centre = disc(radius=8)[0] > 0  # colours are those of all the portraits' faces
        torch.testing.assert_close(
            luma(made.images[2 * i + j])[centre], luma(alone)[centre], atol=0.05, rtol=0
        )


def test_the_face_goes_where_the_landmarks_say_and_keeps_its_light() -> None:
    face = (1.1 * torch.rand(1, 64, 64) - 0.05).clamp(0, 1).expand(3, -1, -1).clone()
    portraits, source = sets(face, with_eyes(0.5), shift=6)
    made = with_faces_of(portraits, source).images[0]
    inner = disc(38, radius=12)[0] > 0
    torch.testing.assert_close(
        luma(made)[inner], luma(face.roll(6, dims=-1))[inner], atol=2e-3, rtol=0
    )


def test_black_and_white_are_the_styles() -> None:
    face = torch.rand(1, 64, 64).expand(3, -1, -1).clone()
    pastel = 0.4 + 0.5 * with_eyes(0.5)
    portraits, source = sets(face, pastel)
    made = with_faces_of(portraits, source).images[0]
    inner = disc(radius=12)[0] > 0
    torch.testing.assert_close(luma(made)[inner], 0.4 + 0.5 * luma(face)[inner], atol=0.02, rtol=0)


def test_colours_are_the_styles() -> None:
    red = torch.tensor([0.9, 0.3, 0.2])[:, None, None] * torch.rand(1, 64, 64)
    grey = torch.rand(1, 64, 64).expand(3, -1, -1).clone()
    portraits, source = sets(red, grey)
    made = with_faces_of(portraits, source).images[0]
    assert float((made.amax(0) - made.amin(0)).max()) < 0.02


def test_a_dolls_label_is_near_the_truth() -> None:
    """Measured where it is known: on the face, at a fraction of the portrait's own distance."""
    style, pose = style_from_seed(2_000_099), pose_from_seed(2_000_003)
    person, other = identity_from_seed(2_000_000), identity_from_seed(2_000_050)
    photo = render(person, style_from_seed(2_000_010), pose)
    portrait, truth = render(other, style, pose), render(person, style, pose)
    portraits = references([portrait])
    made = with_faces_of(portraits, references([photo])).images[0]
    face = torch.from_numpy(truth.mask * portrait.mask)
    true = torch.from_numpy(truth.image)

    def distance(image: Tensor) -> float:
        return float(((image - true).abs() * face).sum() / face.sum())

    assert distance(made) < 0.6 * distance(torch.from_numpy(portrait.image))


def test_what_is_left_of_the_portraits_face_takes_the_persons_tone() -> None:
    small = ReferenceSet.of([with_eyes(0.2)], face_masks=[disc(radius=10)], landmarks=[POINTS])
    portraits, _ = sets(torch.zeros(3, 64, 64), with_eyes(0.9))
    made = with_faces_of(portraits, small).images[0]
    rim = (disc(radius=14) - disc(radius=12))[0] > 0
    torch.testing.assert_close(made[:, rim], torch.full_like(made[:, rim], 0.2), atol=0.03, rtol=0)
    assert torch.equal(made[:, disc()[0] == 0], portraits.images[0][:, disc()[0] == 0])


def test_a_face_beside_the_portraits_own_changes_nothing() -> None:
    portraits, _ = sets(torch.rand(3, 64, 64), torch.rand(3, 64, 64))
    corner = ReferenceSet.of(
        [torch.rand(3, 64, 64)], face_masks=[disc(2, 62, 3)], landmarks=[POINTS]
    )
    made = with_faces_of(portraits, corner).images[0]
    assert torch.equal(made, portraits.images[0])


def test_without_a_mask_it_says_what_to_do() -> None:
    portraits, source = sets(torch.rand(3, 64, 64), torch.rand(3, 64, 64))
    bare = ReferenceSet.of(portraits.images)
    with pytest.raises(InputError, match="pseudo_label"):
        with_faces_of(bare, source)
