import pytest
import torch

from magicapture.data import masks
from magicapture.errors import InputError
from magicapture.tokens import Concept


def test_a_style_is_everything_but_the_face():
    face = torch.rand(1, 4, 4)
    assert torch.equal(Concept("ada", "subject").region(face), face)
    assert torch.equal(Concept("oil", "style").region(face), 1 - face)


def test_latent_cells_hold_their_share_of_area():
    mask = torch.zeros(1, 32, 48)
    mask[0, :4, 8:24] = 1  # half of cell (0, 1), half of (0, 2)
    latent = masks.to_latent(mask, 8)
    expected = torch.zeros(1, 4, 6)
    expected[0, 0, 1:3] = 0.5
    torch.testing.assert_close(latent, expected)
    assert masks.to_latent(mask[None], 8).shape == (1, 1, 4, 6)
    torch.testing.assert_close(masks.area_share(latent), masks.area_share(mask))


def test_area_share_of_a_batch():
    mask = torch.zeros(2, 1, 4, 4)
    mask[1, 0, :2] = 1
    assert masks.area_share(mask).tolist() == [0, 0.5]
    assert masks.area_share(mask[1]).shape == ()


def test_half_counts_as_marked():
    assert masks.binarise(torch.tensor([0.0, 0.49, 0.5, 1.0])).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("value", "empty", "full"), [(0, 1, 0), (0.4, 1, 0), (0.6, 0, 1)])
def test_empty_and_full_forgive_stray_pixels(value, empty, full):
    mask = torch.full((1, 200, 200), float(value))
    mask[0, 3, 5] = 1 - mask[0, 3, 5]
    assert masks.is_empty(mask) == bool(empty)
    assert masks.is_full(mask) == bool(full)
    mask[0, :20, :20] = 1 - mask[0, 100, 100]
    assert not masks.is_empty(mask)
    assert not masks.is_full(mask)


def test_a_mask_of_the_same_shape_is_brought_to_the_size(disc):
    mask = disc(100, 150, 70, 40, 25)
    assert masks.fit(mask, (100, 150)) is mask
    for size in [(200, 300), (50, 75), (101, 151)]:
        fitted = masks.fit(mask, size)
        assert fitted.shape == (1, *size)
        assert float(fitted.min()) >= 0 and float(fitted.max()) <= 1
        torch.testing.assert_close(
            masks.area_share(fitted), masks.area_share(mask), atol=2e-3, rtol=0
        )


@pytest.mark.parametrize("size", [(150, 100), (100, 100), (100, 153)])
def test_a_mask_of_another_shape_is_refused(size):
    with pytest.raises(InputError, match=f"150x100 pixels and the picture {size[1]}x{size[0]}"):
        masks.fit(torch.zeros(1, 100, 150), size)


def test_what_looks_inverted():
    full = torch.ones(1, 64, 64)
    assert not masks.looks_inverted(full) and not masks.looks_inverted(0 * full)
    close_up = full.clone()  # a face that fills the picture, hair in two corners
    close_up[:, :12, :12] = close_up[:, :12, -12:] = 0
    assert not masks.looks_inverted(close_up) and not masks.looks_inverted(1 - close_up)
    cut_off = full.clone()  # an inverted one whose face ends at the picture's lower edge
    cut_off[:, 20:, 20:44] = 0
    assert masks.looks_inverted(cut_off) and not masks.looks_inverted(1 - cut_off)
