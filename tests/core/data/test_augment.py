from dataclasses import replace

import pytest
import torch

from magicapture.config import Recipe
from magicapture.data import Photo
from magicapture.data.augment import FACE_KEPT, generator_for, variant

PLAIN = Recipe(resolution=64, flip=False, jitter=0.0, zoom=0.0)
WILD = Recipe(resolution=64, flip=True, jitter=0.3, zoom=0.5)


def rng(variant=0):
    return generator_for(0, 0, variant)


def blob(height, width, points, sigma=2.0):
    """A picture (3,H,W) of soft dots, each in its own channel; its sub-pixel centre is known."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return torch.stack(
        [
            torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
            for x, y in points.tolist()
        ]
    )


def centre(channel):
    """The centre of mass (x, y) of a picture (H,W)."""
    total = channel.sum()
    rows, columns = torch.arange(channel.shape[0]), torch.arange(channel.shape[1])
    return torch.stack([(channel.sum(0) * columns).sum(), (channel.sum(1) * rows).sum()]) / total


def test_without_chance_a_square_is_only_resized():
    image = torch.rand(3, 64, 64)
    mask = torch.rand(1, 64, 64)
    points = torch.rand(5, 2) * 63
    drawn = variant(Photo(image, mask, points), PLAIN, rng())
    torch.testing.assert_close(drawn.image, image)
    torch.testing.assert_close(drawn.face_mask, mask)
    torch.testing.assert_close(drawn.landmarks, points)


@pytest.mark.parametrize(("size", "rows", "columns"), [((64, 100), 0, 18), ((101, 64), 18, 0)])
def test_without_chance_it_is_the_central_square(size, rows, columns):
    image = torch.rand(3, *size)
    for number in range(3):
        drawn = variant(Photo(image, None, None), PLAIN, rng(number))
        torch.testing.assert_close(drawn.image, image[:, rows : rows + 64, columns : columns + 64])
        assert drawn.face_mask is None and drawn.landmarks is None


@pytest.mark.parametrize(("y", "top"), [(20, 9), (90, 36), (150, 97)])
def test_the_square_moves_no_further_than_the_face_needs(disc, y, top):
    image, face = torch.rand(3, 180, 64), disc(180, 64, 32, y, 12)
    points = torch.tensor([[26.0, y - 11], [38, y - 11], [32, y], [28, y + 10], [36, y + 10]])
    cut = variant(Photo(image, face, points), PLAIN, rng())
    if y == 90:  # the centre holds the face already
        top = (180 - 64) // 2
    torch.testing.assert_close(cut.image, image[:, top : top + 64])
    torch.testing.assert_close(cut.landmarks, points - torch.tensor([0.0, top]))


@pytest.mark.parametrize("size", [(96, 96), (90, 200), (200, 90)])
@pytest.mark.parametrize("where", [(0.5, 0.5), (0.1, 0.15), (0.95, 0.9)])
def test_the_face_is_kept(disc, size, where):
    height, width = size
    x, y = where[0] * (width - 1), where[1] * (height - 1)
    face = disc(height, width, x, y, 20)
    points = torch.tensor([[-9.0, -6], [9, -6], [0, 0], [-7, 8], [7, 8]]) + torch.tensor([x, y])
    points = points.clamp(torch.zeros(2), torch.tensor([width - 1.0, height - 1]))
    image, recipe = torch.rand(3, *size), replace(WILD, zoom=0.9, flip=False)
    for number in range(20):
        drawn = variant(Photo(image, face, points), recipe, rng(number))
        inside = drawn.landmarks
        assert bool(((inside >= -0.5) & (inside <= 63.5)).all())
        scale = (inside[4] - inside[0]).norm() / (points[4] - points[0]).norm()
        assert float(drawn.face_mask.sum() / scale**2) >= (FACE_KEPT - 0.01) * float(face.sum())


def test_a_face_larger_than_the_square_is_shown_around_its_centre(disc):
    face = torch.zeros(1, 64, 200)
    face[..., 25:175] = 1
    drawn = variant(Photo(torch.rand(3, 64, 200), face, None), replace(WILD, flip=False), rng())
    assert float(drawn.face_mask.min()) == 1
    image = torch.arange(200.0).expand(3, 64, 200) / 200
    drawn = variant(Photo(image, face, None), PLAIN, rng())
    torch.testing.assert_close(drawn.image[0, 0] * 200, torch.arange(68.0, 132))


@pytest.mark.parametrize("size", [(150, 120), (64, 64), (40, 52), (300, 257)])
def test_dots_follow_their_landmarks(size):
    height, width = size
    spots = torch.tensor([[0.42, 0.45], [0.6, 0.44], [0.5, 0.52], [0.44, 0.6], [0.58, 0.61]])
    points = spots * torch.tensor([width, height])
    sigma = min(size) / 40
    for number in range(12):
        seen = []
        for pair in ([0, 1, 2], [3, 4, 2]):
            image = blob(height, width, points[pair], sigma)
            drawn = variant(Photo(image, None, points), replace(WILD, jitter=0.0), rng(number))
            seen.append([centre(channel) for channel in drawn.image])
        found = torch.stack([*seen[0][:2], seen[0][2], *seen[1][:2]])
        if bool(found[0, 0] > found[1, 0]):  # mirrored: what was left is right
            found = found[[1, 0, 2, 4, 3]]
        torch.testing.assert_close(found, drawn.landmarks, atol=0.1, rtol=0)


def test_mask_and_image_have_the_same_edges(disc):
    face = disc(150, 110, 60, 80, 31)
    image = face.expand(3, -1, -1).contiguous()
    for number in range(10):
        drawn = variant(Photo(image, face, None), replace(WILD, jitter=0.0), rng(number))
        torch.testing.assert_close(drawn.image, drawn.face_mask.expand(3, -1, -1))
        assert float(drawn.face_mask.min()) >= 0 and float(drawn.face_mask.max()) <= 1


def test_mirroring_swaps_left_and_right():
    points = torch.tensor([[20.0, 20], [40, 21], [30, 30], [23, 40], [38, 41]])
    image = torch.rand(3, 64, 64)
    recipe = replace(PLAIN, flip=True)
    seen = set()
    for number in range(40):
        drawn = variant(Photo(image, None, points), recipe, rng(number))
        mirrored = not torch.allclose(drawn.image, image, atol=1e-5)
        seen.add(mirrored)
        if mirrored:
            torch.testing.assert_close(drawn.image, image.flip(-1))
            expected = [[23.0, 21], [43, 20], [33, 30], [25, 41], [40, 40]]
            torch.testing.assert_close(drawn.landmarks, torch.tensor(expected))
        else:
            torch.testing.assert_close(drawn.landmarks, points)
    assert seen == {True, False}


def test_jitter_is_of_the_image_alone_and_in_its_range(disc):
    image, face = torch.full((3, 64, 64), 0.5), disc(64, 64, 30, 30, 10)
    recipe = replace(PLAIN, jitter=0.2)
    levels = []
    for number in range(40):
        drawn = variant(Photo(image, face, None), recipe, rng(number))
        torch.testing.assert_close(drawn.face_mask, face)
        assert float(drawn.image.std()) < 1e-5  # contrast leaves an even picture alone
        levels.append(float(drawn.image.mean()))
    assert 0.4 <= min(levels) < 0.44 and 0.56 < max(levels) <= 0.6


def test_values_stay_in_range():
    image = (torch.rand(3, 90, 90) > 0.5).float()  # a sharp resize would overshoot
    for number in range(10):
        drawn = variant(Photo(image, None, None), replace(WILD, jitter=1.0), rng(number))
        assert float(drawn.image.min()) >= 0 and float(drawn.image.max()) <= 1


def test_a_variant_depends_on_seed_picture_and_number_alone():
    photo = Photo(torch.rand(3, 80, 96))

    def drawn(*key):
        return variant(photo, WILD, generator_for(*key)).image

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 1), (0, 1, 11), (2**63 - 1, 0, 0)]
    variants = [drawn(*key) for key in keys]
    torch.rand(3)
    for key, image in zip(keys, variants, strict=True):
        assert drawn(*key).equal(image)
    for i, one in enumerate(variants):
        assert all(not one.equal(other) for other in variants[:i])


def test_settings_do_not_change_each_others_draws():
    image = torch.rand(3, 80, 80)
    for number in range(5):
        still = variant(Photo(image, None, None), replace(WILD, jitter=0.0), rng(number))
        lit = variant(Photo(image, None, None), WILD, rng(number))
        flat = still.image.flatten(), lit.image.flatten()
        assert float(torch.corrcoef(torch.stack(flat))[0, 1]) > 0.9
