import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from magicapture.config import Phase, Recipe
from magicapture.data import LatentCache, to_latent, variant
from magicapture.data.augment import generator_for
from magicapture.errors import InputError, NumericalError

STEPS = (Phase("p", 1000),)
RECIPE = Recipe(resolution=64, variants=4, phases=STEPS)
POINTS = torch.tensor([[40.0, 35], [56, 35], [48, 42], [42, 50], [54, 50]])


class Encode:
    """Mean colours of 8x8 cells as latents; counts what it is asked for."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        return F.avg_pool2d(images, 8).half()


@pytest.fixture
def make(reference_set):
    """Makes a cache over a few photos, and says how it was encoded."""

    def made(count=3, recipe=RECIPE, seed=5, encode=None, **fields):
        encode = encode or Encode()
        references = reference_set(count, **fields)
        return LatentCache(references, recipe, encode, downscale=8, seed=seed), encode

    return made


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def same(one, other):
    return (
        one.index == other.index
        and one.latents.equal(other.latents)
        and one.face_mask.equal(other.face_mask)
        and (one.landmarks is None or one.landmarks.equal(other.landmarks))
    )


def test_a_draw_is_the_encoded_variant(make, reference_set):
    cache, _ = make(landmarks=(POINTS,) * 3, captions=("a", None, "c"))
    references = cache.references
    generator = rng()
    for _ in range(20):
        got = cache.sample(generator)
        i = got.index
        variants = [
            variant(references.photos[i], RECIPE, generator_for(5, i, number))
            for number in range(4)
        ]
        latents = [F.avg_pool2d(v.image, 8).half().float()[None] for v in variants]
        (k,) = [k for k, values in enumerate(latents) if values.equal(got.latents)]
        torch.testing.assert_close(got.face_mask, to_latent(variants[k].face_mask, 8)[None])
        torch.testing.assert_close(got.landmarks, variants[k].landmarks[None])
        assert got.caption == ("a", None, "c")[i]
        assert got.latents.dtype == got.face_mask.dtype == torch.float32
        assert got.latents.shape == (1, 3, 8, 8) and got.face_mask.shape == (1, 1, 8, 8)
        assert got.landmarks.shape == (1, 5, 2)


def test_photos_without_masks_have_none(make):
    cache, _ = make(face_masks=())
    got = cache.sample(rng())
    assert got.face_mask is None and got.landmarks is None


def test_any_variant_leaves_the_epoch_alone(make):
    cache, _ = make()
    generator = rng()
    cache.sample(generator)
    before = cache.state_dict()
    seen = {cache.any(generator).index for _ in range(30)}
    assert seen == {0, 1, 2} and cache.state_dict() == before


def test_every_photo_is_seen_equally_often_and_every_variant_at_times(make):
    cache, _ = make(count=5)
    generator = rng()
    epochs = [[cache.sample(generator) for _ in range(5)] for _ in range(40)]
    orders = [tuple(got.index for got in epoch) for epoch in epochs]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(orders)) > 20
    seen = Counter((got.index, float(got.latents.sum())) for epoch in epochs for got in epoch)
    assert len(seen) == 20 and min(seen.values()) >= 2


def test_all_is_encoded_once_in_small_batches_before_the_first_draw(make):
    cache, encode = make(recipe=replace(RECIPE, resolution=512))
    assert encode.batches == [4, 4, 4]
    for _ in range(30):
        cache.sample(rng())
    assert encode.batches == [4, 4, 4]
    assert make(recipe=replace(RECIPE, resolution=1024))[1].batches == [1] * 12


@pytest.mark.parametrize(
    ("steps", "accumulation", "variants"), [(6, 1, 2), (7, 1, 3), (3, 2, 2), (0, 1, 1), (99, 1, 4)]
)
def test_no_more_variants_than_the_steps_can_use(make, steps, accumulation, variants):
    recipe = replace(RECIPE, phases=(Phase("p", steps),), accumulation=accumulation)
    assert sum(make(recipe=recipe)[1].batches) == 3 * variants


@pytest.mark.parametrize("variants", [0, 4])
def test_the_same_seed_makes_the_same_draws(make, variants):
    recipe = replace(RECIPE, variants=variants)
    one, other = make(recipe=recipe)[0], make(recipe=recipe)[0]
    torch.rand(9)
    first, second = rng(3), rng(3)
    assert all(same(one.sample(first), other.sample(second)) for _ in range(10))
    different, _ = make(recipe=recipe, seed=6)
    third = rng(3)
    assert not any(same(one.sample(first), different.sample(third)) for _ in range(10))


@pytest.mark.parametrize("variants", [0, 4])
@pytest.mark.parametrize("cut", [0, 1, 4, 6])
def test_a_resumed_cache_goes_on_exactly(make, variants, cut):
    recipe = replace(RECIPE, variants=variants)
    cache, _ = make(recipe=recipe)
    generator = rng()
    for _ in range(cut):
        cache.sample(generator)
    state, numbers = cache.state_dict(), generator.get_state()
    expected = [cache.sample(generator) for _ in range(8)]

    resumed, _ = make(recipe=recipe)
    resumed.load_state_dict(state)
    generator = torch.Generator()
    generator.set_state(numbers)
    assert all(same(resumed.sample(generator), got) for got in expected)


def test_a_state_of_more_photos_is_refused(make):
    cache, _ = make(count=5)
    cache.sample(rng())
    with pytest.raises(InputError, match="another set of photos"):
        make(count=2)[0].load_state_dict(cache.state_dict())


def test_without_draws_each_request_is_encoded_afresh(make):
    cache, encode = make(recipe=replace(RECIPE, variants=0))
    assert encode.batches == []
    generator = rng()
    latents = [cache.sample(generator).latents for _ in range(12)]
    assert encode.batches == [1] * 12
    assert len({float(values.sum()) for values in latents}) == 12


def test_progress_is_told_and_may_cancel(reference_set):
    told = []

    def progress(done, total):
        told.append((done, total))
        if len(told) == 3:
            raise KeyboardInterrupt

    encode = Encode()
    recipe = replace(RECIPE, resolution=512)
    with pytest.raises(KeyboardInterrupt):
        LatentCache(reference_set(), recipe, encode, downscale=8, seed=0, on_progress=progress)
    assert told == [(0, 12), (4, 12), (8, 12)] and encode.batches == [4, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("variants", [0, 4])
def test_latents_that_are_not_finite_name_the_photo(make, value, variants):
    def encode(images):
        latents = F.avg_pool2d(images, 8)
        latents[0, 0, 0, 0] = value
        return latents

    with pytest.raises(NumericalError, match=r"latents of image 1;.*fp32-vae"):
        make(1, recipe=replace(RECIPE, variants=variants), encode=encode)[0].sample(rng())


def test_a_resolution_the_model_cannot_take(make):
    with pytest.raises(InputError, match="resolution is 100; this model needs a multiple of 8"):
        make(recipe=replace(RECIPE, resolution=100))


@pytest.mark.parametrize("variants", [0, 4])
def test_draws_made_in_inference_mode_can_be_trained_on(reference_set, variants):
    with torch.inference_mode():  # as ComfyUI runs its nodes
        references = reference_set(landmarks=(POINTS,) * 3)
        recipe = replace(RECIPE, variants=variants)
        cache = LatentCache(references, recipe, Encode(), downscale=8, seed=0)
        got = cache.sample(rng())
    assert not any(t.is_inference() for t in (got.latents, got.face_mask, got.landmarks))
    weight = torch.ones(1, requires_grad=True)
    (weight * got.latents * got.face_mask).sum().backward()
    assert weight.grad is not None


def test_with_a_real_encoder_of_diffusers(reference_set):
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    ).requires_grad_(True)

    def encode(images):
        return vae.encode(2 * images - 1).latents

    cache = LatentCache(reference_set(), RECIPE, encode, downscale=8, seed=0)
    got = cache.sample(rng())
    assert got.latents.shape == (1, 4, 8, 8) and not got.latents.requires_grad
