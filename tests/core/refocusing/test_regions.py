"""Regions found on attention made by hand, and what blurs and cuts them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from magicapture.attention import LayerMaps
from magicapture.refocusing import Focus, Recorder, RefocusGuidance, blur, region
from magicapture.refocusing.regions import _evidence
from magicapture.tokens import places

SUBJECT = Focus("ada", "subject", (1,), (2,))
STYLE = Focus("ink", "style", (4,))


def test_blur_is_a_gaussian_that_keeps_the_mass() -> None:
    spot = torch.zeros(1, 21, 21)
    spot[0, 10, 10] = 1
    found = blur(spot, 1.5)
    at = torch.arange(21) - 10
    line = (-0.5 * (at / 1.5) ** 2).exp() * (at.abs() <= 4)  # round(3 * 1.5) cells to each side
    expected = torch.outer(line, line) / line.sum() ** 2
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(blur(spot, 0), spot)
    torch.testing.assert_close(blur(torch.ones(1, 3, 2), 4.0), torch.ones(1, 3, 2))


def test_region_is_what_lies_above_the_cut() -> None:
    values = torch.tensor([[[0.2, 0.3], [0.44, 0.6]]])
    assert region(values, 0, 0.5).tolist() == [[[0, 0], [1, 1]]]
    assert region(values, 0, 0.7).tolist() == [[[0, 0], [0, 1]]]
    assert region(torch.full((1, 2, 2), 0.3), 0, 0.5).sum() == 0


def test_evidence_counts_the_token_and_its_word_alike_and_no_style() -> None:
    token, word, style = torch.rand(3, 4, 4)
    keys = ((1, "ada"), (1, "ada (word)"), (1, "ink"))
    fine = LayerMaps("fine", 1, ((1, "ada"),), torch.rand(1, 8, 8))
    layer = LayerMaps("coarse", 2, keys, torch.stack([token, word * 50, style]))
    found = _evidence([fine, layer], [(), (SUBJECT, STYLE)])
    sized = fine.values[0].view(4, 2, 4, 2).mean((1, 3))
    expected = sum(m / m.amax() for m in (token, word, sized))
    torch.testing.assert_close(found[1, 0], expected)
    assert found[0].abs().sum() == 0
    assert _evidence([layer], [(), (STYLE,)]) is None


def test_places_are_all_occurrences_of_a_word() -> None:
    ids = [-1, 7, 8, 9, 8, 9, -2]
    assert places(ids, [8, 9]) == (2, 3, 4, 5)
    assert places(ids, [9, 7]) == () == places(ids, [])
    vectors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert places([*vectors, vectors[0].clone()], vectors[:1], torch.equal) == (0, 2)


def test_a_token_repeated_by_padding_has_all_its_columns() -> None:
    assert SUBJECT.repeated(5, 15) == Focus("ada", "subject", (1, 6, 11), (2, 7, 12))


class Layer(nn.Module):
    """Attention whose queries and keys are given."""

    heads = 1

    def __init__(self, query: Tensor, key: Tensor) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Identity(), nn.Identity()
        self.pair = query, key

    def forward(self) -> None:
        self.to_q(self.pair[0])
        self.to_k(self.pair[1])


@pytest.fixture
def scene() -> tuple[nn.Module, Tensor]:
    """A UNet of one block that looks for the token in the right half, but for a hole in it.

    Its self-attention sees two kinds of cells alone, the halves, so it fills the hole.
    """
    right = torch.zeros(8, 8)
    right[:, 4:] = 1
    looked = right.clone()
    looked[3:5, 5:7] = 0
    query = torch.stack([torch.zeros(64), looked.flatten()]).unsqueeze(-1) * 4
    key = torch.zeros(2, 6, 1)
    key[1, 1] = key[1, 2] = 1.0
    kinds = torch.stack([right.flatten(), 1 - right.flatten()], -1).expand(2, -1, -1)
    unet = nn.ModuleDict({"attn1": Layer(kinds * 30, kinds), "attn2": Layer(query, key)})
    return unet, right


def test_a_constructed_region_is_found_and_its_hole_filled(scene) -> None:
    unet, right = scene
    settings = RefocusGuidance(smoothing=0.0, factors=(1,))
    for spreading in (False, True):
        recorder = Recorder(unet, (1,), spreading)
        with recorder.recording():
            unet["attn1"]()
            unet["attn2"]()
        rows = [(), (SUBJECT, STYLE)]
        maps = recorder.maps(rows, (8, 8))
        none, found = recorder.regions(maps, rows, (8, 8), settings)
        assert none is None
        assert (found == right).all() == spreading
        assert found.sum() == (32 if spreading else 28)


def test_no_subject_or_a_flat_map_gives_no_region(scene) -> None:
    unet, _ = scene
    unet["attn2"].pair = (torch.zeros(2, 64, 1), torch.zeros(2, 6, 1))
    for tokens in ((SUBJECT, STYLE), (STYLE,)):
        recorder = Recorder(unet, (1,), True)
        with recorder.recording():
            unet["attn1"]()
            unet["attn2"]()
        maps = recorder.maps([(), tokens], (8, 8))
        assert recorder.regions(maps, [(), tokens], (8, 8), RefocusGuidance()) == [None, None]
