"""What captions say is read off them, at the token that ends the clause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from magicapture.paperdoll import identity_from_seed, pose_from_seed, style_from_seed
from magicapture.paperdoll.attributes import ATTRIBUTES, UNSEEN, classes
from magicapture.paperdoll.captions import SLOTS, caption, read
from magicapture.paperdoll.tokenizer import LENGTH, load_tokenizer, write_tokenizer
from pretrain.stage_unet import reading_loss


@pytest.mark.parametrize("seed", range(0, 60))
def test_a_full_caption_says_what_the_doll_is(seed: int) -> None:
    parts = identity_from_seed(seed), style_from_seed(seed), pose_from_seed(seed)
    said = {slot: word for slot, word, _ in read(caption(*parts))}
    for name, number in classes(*parts).items():
        word = ATTRIBUTES[name][number] if number != UNSEEN else None
        if word is not None and word != "none":
            assert said[name] == word
    assert said["iris"] == parts[0].iris_name


def test_a_clause_has_been_said_at_its_last_word(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    rng = np.random.default_rng(3)
    ends = {"hair": ("hair", "bald", "beanie"), "tone": ("skin",), "background": ("background",)}
    for seed in range(40):
        text = caption(
            *(make(seed) for make in (identity_from_seed, style_from_seed, pose_from_seed)), rng
        )
        ids = tokenizer(text)["input_ids"]
        for slot, _, at in read(text):
            if slot in ends and at < len(ids):
                assert tokenizer.decode([ids[at]]).strip() in ends[slot]


def test_the_style_at_the_end_overrules_the_opening() -> None:
    said = read("a photo of a person, calm, in the sketch style")
    assert [(s.slot, s.word) for s in said] == [("mood", "calm"), ("medium", "sketch")]


def test_reading_costs_nothing_where_it_is_right_and_counts_only_what_was_given() -> None:
    said = torch.full((2, len(SLOTS), 2), -1)
    said[0, 0] = torch.tensor([5, 2])
    said[1, 0] = torch.tensor([4, 1])
    logits = torch.zeros(2, LENGTH, sum(map(len, SLOTS.values())))
    uniform = reading_loss(logits, said, torch.tensor([True, True]))
    assert uniform.item() == pytest.approx(np.log(len(SLOTS["medium"])), rel=1e-5)
    logits[0, 5, 2] = 50
    assert reading_loss(logits, said, torch.tensor([True, False])).item() < 1e-6
    assert reading_loss(logits, said, torch.tensor([False, False])).item() == 0
