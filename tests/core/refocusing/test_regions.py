"""Regions found on attention made by hand, and what blurs and cuts them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from magicapture.attention import LayerMaps, TappedTorch
from magicapture.refocusing import (
    Finder,
    Focus,
    RefocusGuidance,
    all_maps,
    blur,
    capture_of,
    region,
)
from magicapture.refocusing.regions import _evidence, _evidence_columns
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


def test_places_are_all_occurrences_of_a_word() -> None:
    ids = [-1, 7, 8, 9, 8, 9, -2]
    assert places(ids, [8, 9]) == (2, 3, 4, 5)
    assert places(ids, [9, 7]) == () == places(ids, [])
    vectors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert places([*vectors, vectors[0].clone()], vectors[:1], torch.equal) == (0, 2)


def test_a_token_repeated_by_padding_has_all_its_columns() -> None:
    assert SUBJECT.repeated(5, 15) == Focus("ada", "subject", (1, 6, 11), (2, 7, 12))


class Layer(nn.Module):
    """Attention whose queries and keys (B,N,D) are given."""

    to_q = to_k = heads = None  # what a UNet's attention layers are known by

    def __init__(self, query: Tensor, key: Tensor) -> None:
        super().__init__()
        self.pair = query, key

    def forward(self) -> None:
        query, key = (x[:, None] for x in self.pair)
        nn.functional.scaled_dot_product_attention(query, key, key)


class Stack(nn.Module):
    """A UNet's stack of blocks over a picture `side` cells high and wide."""

    def __init__(self, side: int, *blocks: dict[str, Layer]) -> None:
        super().__init__()
        self.side = side
        self.transformer_blocks = nn.ModuleList(nn.ModuleDict(block) for block in blocks)

    def forward(self, _: Tensor) -> None:
        for block in self.transformer_blocks:
            for layer in block.values():
                layer()


def passed(recorder, unet: nn.Module) -> None:
    with recorder.recording():
        for stack in unet.values():
            rows = len(stack.transformer_blocks[0]["attn2"].pair[0])
            stack(torch.zeros(rows, 1, stack.side, stack.side))


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
    block = {"attn1": Layer(kinds * 30, kinds), "attn2": Layer(query, key)}
    return nn.ModuleDict({"0": Stack(8, block)}), right


def test_a_constructed_region_is_found_and_its_hole_filled(scene) -> None:
    unet, right = scene
    settings = RefocusGuidance(smoothing=0.0)
    rows = [(), (SUBJECT, STYLE)]
    finder = Finder(TappedTorch.of(unet), settings)
    passed(finder, unet)
    none, found = finder.regions(rows, (8, 8))
    assert none is None
    assert torch.equal(found, right)
    del unet["0"].transformer_blocks[0]["attn1"]  # nothing spreads
    finder = Finder(TappedTorch.of(unet), settings)
    passed(finder, unet)
    assert finder.regions(rows, (8, 8))[1].sum() == 28


def test_evidence_counts_the_token_and_its_word_alike_and_no_style() -> None:
    columns = _evidence_columns((SUBJECT, STYLE))
    assert columns == {"ada": (1,), "ada (word)": (2,)}
    token, word, other = torch.rand(3, 4, 4)
    keys = tuple((1, name) for name in columns)
    layers = [
        LayerMaps("one", 2, keys, torch.stack([token, word * 50])),
        LayerMaps("two", 2, keys[:1], other[None]),
    ]
    found = _evidence(layers, 2)
    torch.testing.assert_close(found[1, 0], sum(m / m.amax() for m in (token, word, other)))
    assert found[0].abs().sum() == 0
    assert _evidence_columns((STYLE,)) == {}
    assert _evidence([], 2) is None


def test_the_finder_takes_the_size_nearest_to_16_and_the_last_block_of_a_stack() -> None:
    def block(side: int, hot: int) -> dict[str, Layer]:
        query = torch.zeros(1, side * side, 1)
        query[0, hot] = 4
        key = torch.zeros(1, 6, 1)
        key[0, 1] = 1.0
        return {"attn2": Layer(query, key)}

    unet = nn.ModuleDict({str(n): Stack(n, block(n, 0), block(n, n * n - 1)) for n in (32, 16, 4)})
    finder = Finder(TappedTorch.of(unet), RefocusGuidance(smoothing=0.0))
    passed(finder, unet)
    (found,) = finder.regions([(Focus("ada", "subject", (1,)),)], (32, 32))
    expected = torch.zeros(32, 32)
    expected[30:, 30:] = 1  # one cell of 16x16, where the last block looks
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("factors", "mapped"), [(None, [1, 2, 4]), ((2, 4), [2, 4]), ((4,), [4])])
def test_maps_are_of_8x8_to_32x32_cells_or_as_asked(factors, mapped) -> None:
    key = torch.zeros(1, 6, 1)
    unet = nn.ModuleDict(
        {str(n): Stack(n, {"attn2": Layer(torch.zeros(1, n * n, 1), key)}) for n in (32, 16, 8, 4)}
    )
    for settings, expected in (
        (RefocusGuidance(factors=factors), mapped),
        (None, [1, 2, 4, 8]),
    ):
        capture = capture_of(TappedTorch.of(unet))
        passed(capture, unet)
        assert [m.factor for m in all_maps(capture, [(SUBJECT,)], (32, 32), settings)] == expected


def test_no_subject_or_a_flat_map_gives_no_region(scene) -> None:
    unet, _ = scene
    unet["0"].transformer_blocks[0]["attn2"].pair = (torch.zeros(2, 64, 1), torch.zeros(2, 6, 1))
    for tokens in ((SUBJECT, STYLE), (STYLE,)):
        finder = Finder(TappedTorch.of(unet), RefocusGuidance())
        passed(finder, unet)
        assert finder.regions([(), tokens], (8, 8)) == [None, None]
