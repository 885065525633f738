"""What is measured without a further network: style, what words still do, attention."""

from __future__ import annotations

import pytest
import torch

from magicapture.backbones import load_backbone
from magicapture.checkpoints.attending import WORDS, Obedience, kept_share
from magicapture.checkpoints.eyes import RelativeEyes, autoencoder_eyes, clip_eyes
from magicapture.metrics import likeness
from magicapture.paperdoll.pairs import Pair, make_pair, pictures
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.training import Trainer


def test_the_share_that_is_kept() -> None:
    base = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    aside = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    aside -= base * (aside * base).sum() / base.square().sum()
    for share in (0.0, 0.4, 1.0, -0.5):
        assert kept_share(share * base + 2 * aside, base) == pytest.approx(share, abs=1e-5)


def test_relative_eyes_see_the_way_from_the_mean() -> None:
    pool = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    eyes = RelativeEyes(lambda vectors: vectors, pool)
    found = eyes.of_images(torch.tensor([[2.0, 9.0], [0.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))


def test_the_autoencoder_tells_a_style_from_others() -> None:
    pair = make_pair(1_000_000, 1_000_099, poses=1)
    eyes = autoencoder_eyes(load_backbone(WEIGHTS), pictures(pair.training))
    style = eyes.of_images(pictures(pair.reference))
    inside = likeness(eyes.of_images(pictures(pair.unseen[:4])), style)
    outside = likeness(eyes.of_images(pictures(pair.otherwise[:4])), style)
    assert inside.min() > outside.max()
    torch.testing.assert_close(style.norm(dim=1), torch.ones(len(style)))


def test_clip_is_seen_without_its_mean(pair: Pair) -> None:
    class Colour:
        def of_images(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(images.mean(dim=(2, 3)) + 10, dim=1)

    images = pictures(pair.training)
    plain = Colour().of_images(images)
    assert (plain @ plain.T).min() > 0.99, "all alike"
    found = clip_eyes(Colour(), images).of_images(images)
    assert (found @ found.T).min() < 0


def test_words_do_all_of_what_they_do_where_nothing_is_learned(job, make_backbone, face_model):
    """The base model with the class prompt in place of the composed one is its own measure."""
    backbone = make_backbone()
    with Trainer.open(job, backbone, embedder=face_model) as trainer:
        portrait = next(trainer.materials.batches.reference.each())
        obedience = Obedience(job, backbone, portrait.latents)
        assert len(obedience.words) == WORDS
        first = obedience(trainer.learned)
        base = obedience._base
        assert base is not None and base.shape == (WORDS, 3, *portrait.latents.shape[1:])
        assert kept_share(base, base) == pytest.approx(1)
        trainer.run()
        assert obedience(trainer.learned) != first
        fresh = Obedience(job, backbone, portrait.latents)
        fresh(trainer.learned)
        torch.testing.assert_close(fresh._base, base, msg="measured with the LoRA taken out")
