"""RSA and RBA against attention written out with -inf where nothing may be seen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from magicapture.attention import Attention
from magicapture.magicface import ReferenceKeys, reference_attention, region_attention

HEADS, WIDTH, PLACES = 2, 4, 12


def written_out(query: Tensor, keys: list[Tensor], values: list[Tensor], bias: Tensor) -> Tensor:
    """softmax(q k / sqrt d + bias) v, head by head; bias (N,M). query (H,N,D), keys (H,m,D)."""
    key, value = torch.cat(keys, dim=1), torch.cat(values, dim=1)
    out = []
    for q, k, v in zip(query, key, value, strict=True):
        weights = (q @ k.T / math.sqrt(WIDTH) + bias).exp()
        out.append(weights / weights.sum(-1, keepdim=True) @ v)
    return torch.stack(out)


@pytest.fixture
def own() -> Attention:
    return Attention("here", *torch.randn(3, 2, HEADS, PLACES, WIDTH), None)


@pytest.fixture
def pictures() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keys, values and mask of two references."""
    return [
        (*torch.randn(2, HEADS, PLACES, WIDTH), torch.rand(PLACES) > 0.5)  # type: ignore[misc]
        for _ in range(2)
    ]


def masked(pictures, weights=(3.0, -1.0)) -> list[ReferenceKeys]:
    return [
        ReferenceKeys(k[:, m], v[:, m], w) for (k, v, m), w in zip(pictures, weights, strict=True)
    ]


def test_rsa_is_attention_with_minus_infinity_off_the_masks(own, pictures):
    got = reference_attention(own, masked(pictures))
    biases = [
        torch.where(m, w, float("-inf")) for (_, _, m), w in zip(pictures, (3.0, -1.0), strict=True)
    ]
    bias = torch.cat([torch.zeros(PLACES), *biases])
    for row in range(2):
        keys = [own.key[row], *(k for k, _, _ in pictures)]
        values = [own.value[row], *(v for _, v, _ in pictures)]
        torch.testing.assert_close(got[row], written_out(own.query[row], keys, values, bias))


@pytest.mark.parametrize("weight", [float("-inf"), -1e4])
def test_a_weight_of_minus_infinity_is_plain_attention(own, pictures, weight):
    plain = reference_attention(own, [])
    hidden = reference_attention(own, masked(pictures, (weight, weight)))
    torch.testing.assert_close(hidden, plain, rtol=0, atol=1e-6)


def test_masks_without_a_place_are_plain_attention_bit_by_bit(own, pictures):
    nothing = [(k, v, torch.zeros_like(m)) for k, v, m in pictures]
    empty = masked(nothing)
    assert all(keys.empty for keys in empty)
    plain = reference_attention(own, [])
    assert torch.equal(reference_attention(own, empty), plain)


def test_each_region_sees_its_own_reference_and_the_rest_stays_plain(own, pictures):
    regions = torch.zeros(2, 2, PLACES, dtype=torch.bool)
    regions[0, 0, :4] = True
    regions[0, 1, 4:9] = True  # the second picture has no region at all
    plain = reference_attention(own, [])
    got = region_attention(plain, own, masked(pictures), regions)
    assert torch.equal(got[1], plain[1])
    assert torch.equal(got[0, :, 9:], plain[0, :, 9:])
    for concept, (where, weight) in enumerate(((slice(0, 4), 3.0), (slice(4, 9), -1.0))):
        k, v, m = pictures[concept]
        bias = torch.cat([torch.zeros(PLACES), torch.where(m, weight, float("-inf"))])
        query = own.query[0, :, where]
        expected = written_out(query, [own.key[0], k], [own.value[0], v], bias)
        torch.testing.assert_close(got[0, :, where], expected)


def test_a_region_whose_reference_is_hidden_stays_plain(own, pictures):
    regions = torch.ones(2, 1, PLACES, dtype=torch.bool)
    hidden = masked(pictures, (float("-inf"), 0.0))[:1]
    plain = reference_attention(own, [])
    assert torch.equal(region_attention(plain, own, hidden, regions), plain)
