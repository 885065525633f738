"""Concepts: their words' places, their masks, the rows they make."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from magicapture.errors import InputError
from magicapture.magicface import (
    Reference,
    concept_columns,
    exclusive_masks,
    reference_rows,
    square,
)

IMAGE = torch.rand(3, 32, 32)


def reference(*words: str, mask=None, image=IMAGE, prompt="a photo") -> Reference:
    return Reference(image, mask, words, prompt)


def columns(references, prompt, length=77):
    return concept_columns(references, prompt.split(), str.split, length)


def test_words_are_found_wherever_they_stand():
    prompt = "a young man and a hat on a young man"
    found = columns([reference("young man"), reference("hat", "on")], prompt)
    assert found == [[2, 3, 9, 10], [6, 7]]  # column 0 is the start


@pytest.mark.parametrize(
    ("references", "length", "message"),
    [
        ([("cat",)], 77, "without 'cat'"),
        ([("man", "hat")], 5, "'hat' comes after"),
        ([("man",), ("hat", "man")], 77, "'man' and 'hat' have a word in common"),
    ],
)
def test_words_that_cannot_be_used_are_named(references, length, message):
    with pytest.raises(InputError, match=message):
        columns([reference(*words) for words in references], "man in a hat", length)


def test_shapes_and_words_are_checked():
    with pytest.raises(InputError, match=r"\(3,H,W\)"):
        reference("man", image=torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"\(1,H,W\)"):
        reference("man", mask=torch.rand(8, 8))
    with pytest.raises(InputError, match="no words"):
        reference(" ")


def test_of_two_masks_in_one_picture_the_smaller_keeps_the_place():
    person, hat = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    person[:, :, 8:24] = 1
    hat[:, :8, 4:28] = 1
    one, other = reference("man", mask=person), reference("hat", mask=hat)
    kept = exclusive_masks([one, other])
    assert torch.equal(kept[1], hat)
    assert torch.equal(kept[0], person * (1 - hat))
    elsewhere = replace(other, image=torch.rand(3, 32, 32))
    assert torch.equal(exclusive_masks([one, elsewhere])[0], person)


def test_a_reference_that_others_cover_is_refused():
    """Two concepts, each the whole of one picture: the second would give nothing."""
    with pytest.raises(InputError, match="Nothing is left of the reference 'hat'"):
        exclusive_masks([reference("man"), reference("hat")])
    nothing = torch.zeros(1, 32, 32)
    assert not exclusive_masks([reference("man"), reference("hat", mask=nothing)])[1].any()


def test_a_picture_is_kept_whole_on_a_square():
    wide = torch.rand(3, 16, 32)
    assert torch.equal(square(wide, 32, mirrored=True)[:, 8:24], wide)
    mask = square(torch.ones(1, 16, 32), 32, mirrored=False)
    assert mask[:, 8:24].min() == 1
    assert mask[:, :8].max() == mask[:, 24:].max() == 0
    assert square(torch.rand(3, 4, 64), 64, mirrored=True).shape == (3, 64, 64)  # too thin to fold


def test_concepts_of_one_picture_share_a_row():
    upper, lower = torch.zeros(2, 1, 32, 32)
    upper[:, :8], lower[:, 16:] = 1, 1
    references = [
        reference("face", mask=lower),
        reference("hair", mask=upper),
        reference("hat", image=torch.rand(3, 20, 32)),
        reference("suit", prompt="another"),
    ]
    calls = []

    def encode(images):
        calls.append(images.shape)
        return torch.nn.functional.avg_pool2d(images, 8)

    rows = reference_rows(references, 64, 8, encode)
    assert rows.rows == (0, 0, 1, 2)
    assert rows.prompts == ("a photo", "a photo", "another")
    assert rows.latents.shape == (3, 3, 8, 8)
    assert len(calls) == 3
    assert rows.masks.shape == (4, 1, 8, 8)


def test_a_small_mask_keeps_its_best_place_and_an_empty_one_none():
    small, empty = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    small[:, 8:12, 8:12] = 1
    references = [reference("mole", mask=small), reference("hat", mask=empty), reference("all")]
    latents = torch.nn.functional.avg_pool2d
    rows = reference_rows(references, 64, 8, lambda images: latents(images, 8))
    assert rows.kept(0, (4, 4)).nonzero().tolist() == [[0]]
    assert not rows.kept(1, (4, 4)).any()
    assert rows.kept(2, (8, 8)).all()


def test_noise_is_fresh_at_every_level_and_the_same_again():
    rows = reference_rows([reference("man")], 64, 8, lambda i: torch.zeros(1, 4, 8, 8))
    assert torch.equal(rows.noise(3.5, 1), rows.noise(3.5, 1))
    assert not torch.equal(rows.noise(3.5, 1), rows.noise(3.4, 1))
    assert not torch.equal(rows.noise(3.5, 1), rows.noise(3.5, 2))
