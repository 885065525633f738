"""Masks in the aligned head and back in the picture; which parts, which face."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.faces.align import FFHQ_TEMPLATE, invert, similarity, transform, warp
from magicapture.faces.analyzer import FaceAnalyzer
from magicapture.faces.masks import MaskSettings, beyond, face_mask, parts_from
from magicapture.faces.protocols import FACE_PARTS, Face, Part

PLAIN = MaskSettings(grow=0, feather=0)


def face_at(x: float, y: float, width: float) -> Face:
    """A frontal face whose head of 512 px is as wide as `width` pixels, its corner at x, y."""
    points = FFHQ_TEMPLATE * (width / 512) + torch.tensor([x, y])
    return Face(torch.tensor([x, y, x + width, y + width]), points, 1.0)


class Squares:
    """Parses the middle of a head as skin, a band above as hair."""

    def __call__(self, images: Tensor) -> Tensor:
        parts = torch.full((len(images), *images.shape[-2:]), int(Part.BACKGROUND))
        parts[:, 128:384, 128:384] = Part.SKIN
        parts[:, 64:128, 128:384] = Part.HAIR
        return parts


def test_parts_by_name() -> None:
    assert parts_from("face") == FACE_PARTS
    assert parts_from(" Face, hair ") == FACE_PARTS | {Part.HAIR}
    assert parts_from("brows, eye") == {Part.BROW, Part.EYE}
    with pytest.raises(InputError, match="'chin'"):
        parts_from("face, chin")
    with pytest.raises(InputError, match="No part"):
        parts_from(" , ")


@pytest.mark.parametrize("width", [64, 256, 700])
def test_a_parsed_mask_lies_where_the_part_is(width) -> None:
    image = torch.rand(3, 800, 900)
    made = face_mask(image, face_at(90, 50, width), Squares(), PLAIN)
    assert made.parsed and made.mask.shape == (1, 800, 900)
    rows, columns = (made.mask[0] > 0.5).nonzero(as_tuple=True)
    expected = torch.tensor([50.0, 50, 90, 90]) + width * torch.tensor([0.25, 0.75, 0.25, 0.75])
    found = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    torch.testing.assert_close(torch.tensor(found).float(), expected, atol=2.0, rtol=0)
    with_hair = face_mask(
        image, face_at(90, 50, width), Squares(), MaskSettings("face, hair", 0, 0)
    )
    share = float(with_hair.mask.sum() / made.mask.sum())
    assert share == pytest.approx(1.25, abs=0.05)


def test_a_tilted_head_gets_a_tilted_mask() -> None:
    turn = torch.tensor([[[0.4, -0.3, 200.0], [0.3, 0.4, 60.0]]])  # from the head to the picture
    face = Face(torch.zeros(4), transform(turn, FFHQ_TEMPLATE[None])[0], 1.0)
    mask = face_mask(torch.rand(3, 400, 500), face, Squares(), PLAIN).mask
    back = warp(mask[None], invert(turn), 512)[0, 0] > 0.5
    inside = torch.zeros(512, 512, dtype=torch.bool)
    inside[128:384, 128:384] = True
    assert (back == inside).float().mean() > 0.985


def test_grow_and_feather_are_shares_of_the_face() -> None:
    image, face = torch.rand(3, 600, 600), face_at(40, 40, 512)
    plain = face_mask(image, face, Squares(), PLAIN).mask
    rows = (plain[0, :, 296] > 0.5).sum()
    grown = face_mask(image, face, Squares(), MaskSettings(grow=0.1, feather=0)).mask
    shrunk = face_mask(image, face, Squares(), MaskSettings(grow=-0.1, feather=0)).mask
    assert (grown[0, :, 296] > 0.5).sum() - rows == pytest.approx(60, abs=3)  # 2 x 0.1 x 296
    assert rows - (shrunk[0, :, 296] > 0.5).sum() == pytest.approx(60, abs=3)
    soft = face_mask(image, face, Squares(), MaskSettings(grow=0, feather=0.2)).mask[0, :, 296]
    edge = soft[:300]
    assert ((edge > 0.03) & (edge < 0.97)).sum() == pytest.approx(0.2 * 296, abs=12)
    torch.testing.assert_close(soft.sum(), plain[0, :, 296].sum(), atol=2.0, rtol=0)


def test_without_a_parser_the_mask_is_an_oval_and_says_so() -> None:
    class Blind:
        def __call__(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), *images.shape[-2:], dtype=torch.long)

    image, face = torch.rand(3, 400, 400), face_at(60, 60, 256)
    for parser in (None, Blind()):
        made = face_mask(image, face, parser, PLAIN)
        assert not made.parsed
        points = face.landmarks.round().long()
        assert (made.mask[0, points[:, 1], points[:, 0]] == 1).all()
        assert float(made.mask.sum()) == pytest.approx(3.1416 * 74 * 95, rel=0.03)
    turned = face.landmarks + torch.tensor([[0.0, 0], [0, 0], [20, 0], [0, 0], [0, 0]])
    shifted = face_mask(image, Face(face.box, turned, 1.0), None, PLAIN).mask
    columns = torch.arange(400.0)
    middle = [float((m[0].sum(0) * columns).sum() / m.sum()) for m in (made.mask, shifted)]
    assert middle[1] < middle[0] - 10 and shifted.sum() < made.mask.sum()


def test_a_neighbours_pixels_are_the_neighbours() -> None:
    image = torch.rand(3, 300, 500)
    left, right = face_at(20, 20, 256), face_at(120, 20, 256)
    both = (left, right)
    one = face_mask(image, left, Squares(), PLAIN, both).mask
    other = face_mask(image, right, Squares(), PLAIN, both).mask
    assert not (one * other > 0.5).any()
    alone = face_mask(image, left, Squares(), PLAIN).mask
    assert one.sum() < alone.sum() and torch.equal(one[..., :190], alone[..., :190])


def test_the_person_of_all_photos_is_chosen() -> None:
    def embedder(faces: Tensor) -> Tensor:  # a person is a colour
        return faces.mean(dim=(2, 3)) - faces.mean(dim=(1, 2, 3), keepdim=False)[:, None]

    colours = {"ada": [1.0, 0.1, 0.1], "bob": [0.1, 1, 0.1], "eve": [0.1, 0.1, 1]}
    shown = [["bob", "ada"], ["ada"], ["eve", "ada"], ["ada", "bob"], []]
    images, faces = [], []
    for names in shown:
        image, found = torch.full((3, 150, 300), 0.5), []
        for i, name in enumerate(names):
            image[:, :, 150 * i : 150 * i + 150] = torch.tensor(colours[name]).view(3, 1, 1)
            found.append(face_at(150 * i + 11, 11, 128))
        images.append(image)
        faces.append(tuple(found))
    analyzer = FaceAnalyzer(lambda image: (), embedder=embedder)
    assert analyzer.people(images, faces) == [1, 0, 1, 0, None]
    assert FaceAnalyzer(lambda image: ()).people(images, faces) == [0, 0, 0, 0, None]
    with pytest.raises(InputError, match="face recognition model"):
        FaceAnalyzer(lambda image: ()).embeddings(images[0], faces[0])


def test_the_head_is_what_the_template_says() -> None:
    face = face_at(10, 20, 256)
    matrix = similarity(face.landmarks[None], FFHQ_TEMPLATE)
    torch.testing.assert_close(
        transform(matrix, face.landmarks[None])[0], FFHQ_TEMPLATE, atol=1e-2, rtol=0
    )


@pytest.mark.parametrize(
    ("x", "y", "share"), [(0, 0, 0.0), (-128, 0, 0.5), (128, 0, 0.5), (0, -146, 0.5), (400, 0, 1.0)]
)
def test_the_share_of_a_face_beyond_the_picture(x, y, share) -> None:
    """A head of 256 px whose oval, with its middle at (128, 146), is halved by the edges."""
    assert beyond(face_at(x, y, 256), (256, 256)) == pytest.approx(share, abs=0.03)
