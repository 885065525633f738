"""Leakage of an adapter's tokens, beside a computation by hand."""

from __future__ import annotations

import pytest
import torch

from magicapture.adapters.adapter import Adapter
from magicapture.paperdoll.attention import SNRS, token_leakage
from magicapture.paperdoll.model import doll_backbone
from magicapture.paperdoll.recipe import doll_recipe
from magicapture.tokens import Concept

WIDTH = 32


@pytest.fixture
def adapter() -> Adapter:
    """Two tokens with vectors of ordinary size and no LoRA."""
    concepts = (Concept("doll-a", "subject"), Concept("look-b", "style"))
    vectors = {c.name: {"clip_l": 0.5 * torch.randn(1, WIDTH)} for c in concepts}
    return Adapter({}, vectors, "sd1", doll_recipe(), concepts)


def test_each_token_is_measured_outside_its_own_region(backbone, adapter):
    images = torch.rand(2, 3, 128, 128)
    left = torch.zeros(2, 1, 128, 128)
    left[..., :32] = 1  # a quarter of the picture is face
    found = token_leakage(backbone, adapter, images, left)
    turned = token_leakage(backbone, adapter, images, 1 - left)
    # Mass outside one region and outside its complement are the whole.
    assert found.subject + turned.subject == pytest.approx(1, abs=1e-5)
    assert found.style + turned.style == pytest.approx(1, abs=1e-5)
    assert 0.6 < found.subject < 0.9  # a map without training is almost uniform
    assert 0.1 < found.style < 0.4
    assert max(found.subject_peak, turned.subject_peak) == pytest.approx(1, abs=0.1)


def test_pictures_do_not_see_one_another(backbone, adapter):
    images, faces = torch.rand(2, 3, 128, 128), torch.rand(2, 1, 128, 128).round()
    found = token_leakage(backbone, adapter, images[:1].repeat(2, 1, 1, 1), faces)
    first = token_leakage(
        backbone, adapter, images[:1].repeat(2, 1, 1, 1), faces[:1].repeat(2, 1, 1, 1)
    )
    second = token_leakage(
        backbone, adapter, images[:1].repeat(2, 1, 1, 1), faces[1:].repeat(2, 1, 1, 1)
    )
    assert found.subject == pytest.approx((first.subject + second.subject) / 2, abs=2e-3)


@pytest.mark.parametrize(("model", "levels"), [("unet", [200, 500, 800]), ("transformer", None)])
def test_both_models_are_looked_at_in_the_same_noise(monkeypatch, model, levels):
    """Given to a flow, Stable Diffusion's timesteps made noise 200 times too strong."""
    backbone, seen, sizes = doll_backbone(model), [], []
    predict = backbone.predict

    def watched(noisy, timesteps, conditioning):
        seen.append(timesteps[0])
        sizes.append(float(noisy.std()))
        return predict(noisy, timesteps, conditioning)

    monkeypatch.setattr(backbone, "predict", watched)
    concepts = (Concept("doll-a", "subject"), Concept("look-b", "style"))
    vectors = {c.name: {"clip_l": backbone.word_vectors("clip_l", "person")} for c in concepts}
    adapter = Adapter({}, vectors, backbone.family, doll_recipe(), concepts)
    token_leakage(backbone, adapter, torch.rand(1, 3, 128, 128), torch.ones(1, 1, 128, 128))
    assert max(sizes) < 2
    assert backbone.schedule.snr(torch.stack(seen)).tolist() == pytest.approx(SNRS, rel=0.02)
    assert levels in (None, torch.stack(seen).tolist())


def test_doll_recipes_use_words_that_captions_have():
    from magicapture.paperdoll.captions import vocabulary

    known = {*vocabulary(), "{subject}", "{style}", "{noun}"}
    prompts = doll_recipe().prompts
    for template in (*prompts.source, *prompts.style, *prompts.composed, *prompts.prior):
        assert set(template.split()) <= known, template
