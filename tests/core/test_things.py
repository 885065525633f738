"""The three losses of things: closed forms, their gradients by central differences, the network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from magicapture.losses.equations import appearance, patch_contrast, self_similarity
from magicapture.things import DinoLook

B, N, D = 2, 5, 7


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.fixture
def features() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, N, D), torch.randn(B, N, D), torch.rand(B, N)


def test_self_similarity_closed_form(features):
    keys, source, inside = features
    for b, loss in enumerate(self_similarity(*features)):
        total = weight = 0.0
        for i in range(N):
            for j in range(N):
                w = float(inside[b, i] * inside[b, j])
                of = cosine(keys[b, i], keys[b, j]) - cosine(source[b, i], source[b, j])
                total, weight = total + w * of**2, weight + w
        assert float(loss) == pytest.approx(total / weight, rel=1e-4)


def test_patch_contrast_closed_form(features):
    keys, source, inside = features
    for b, loss in enumerate(patch_contrast(*features)):
        total = 0.0
        for i in range(N):
            scores = [math.exp(cosine(keys[b, i], source[b, j]) / 0.07) for j in range(N)]
            total -= float(inside[b, i]) * math.log(scores[i] / sum(scores))
        assert float(loss) == pytest.approx(total / float(inside[b].sum()), rel=1e-4)


def test_appearance_closed_form():
    look, references = torch.randn(B, D), torch.randn(3, D)
    for b, loss in enumerate(appearance(look, references)):
        each = [
            sum((float(look[b, d]) - float(r[d])) ** 2 for d in range(D)) / D for r in references
        ]
        assert float(loss) == pytest.approx(sum(each) / 3, rel=1e-5)


def test_what_each_is_blind_to(features):
    keys, source, inside = features
    turn = torch.linalg.qr(torch.randn(D, D)).Q
    # The same relations in another basis, or of another length: structure and nothing else.
    assert float(self_similarity(3 * source @ turn, source, inside).max()) < 1e-10
    assert float(patch_contrast(source @ turn, source, inside).min()) > 0.1
    best = patch_contrast(source, source, inside)
    assert bool((best < patch_contrast(keys, source, inside)).all())
    # Outside the thing nothing counts, and without a thing there is no loss.
    inside = torch.tensor([[1.0, 1, 0, 0, 0]] * B)
    other = torch.where(inside[..., None] > 0, keys, torch.randn_like(keys))
    torch.testing.assert_close(
        self_similarity(other, source, inside), self_similarity(keys, source, inside)
    )
    torch.testing.assert_close(
        patch_contrast(other, source, inside), patch_contrast(keys, source, inside)
    )
    for loss in (self_similarity, patch_contrast):
        assert loss(keys, source, torch.zeros(B, N)).tolist() == [0.0] * B


@pytest.mark.parametrize("name", ["self_similarity", "patch_contrast", "appearance"])
def test_gradients_by_central_differences(name, features):
    keys, source, inside = features
    if name == "appearance":
        given, rest, loss = keys[:, 0].clone(), (source[0],), appearance
    else:
        loss = {"self_similarity": self_similarity, "patch_contrast": patch_contrast}[name]
        given, rest = keys.clone(), (source, inside)
    given.requires_grad_(True)
    loss(given, *rest).sum().backward()
    for _ in range(4):
        way = torch.randn_like(given)
        with torch.no_grad():
            ahead, behind = (loss(given + h * way, *rest).sum() for h in (1e-2, -1e-2))
        slope = float((given.grad * way).sum())
        assert slope == pytest.approx(float(ahead - behind) / 2e-2, rel=2e-2, abs=1e-3)


def test_dino_sees_decoded_estimates_their_source_and_the_style(dino):
    def decode(latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8.0) * 2 - 0.5

    style = [torch.rand(1, 4, 8, 8) for _ in range(3)]
    look = DinoLook(dino, decode, style)
    x0, source = torch.rand(2, 2, 4, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4, :2] = 1
    x0.requires_grad_(True)
    seen = look(x0, source, mask, torch.ones(2))
    assert seen.inside.tolist() == [[1.0, 0, 0, 0, 1.0, *[0] * 11], [0.0] * 16]
    torch.testing.assert_close(seen.source, dino(decode(source).clamp(0, 1)).keys)
    torch.testing.assert_close(seen.keys, dino(decode(x0).clamp(0, 1)).keys)
    torch.testing.assert_close(
        seen.references, torch.cat([dino(decode(z).clamp(0, 1)).look for z in style])
    )
    assert not seen.source.requires_grad and not seen.references.requires_grad
    appearance(seen.look, seen.references).sum().backward()
    assert bool((x0.grad[:, :3] != 0).all())  # also where the picture is clamped
