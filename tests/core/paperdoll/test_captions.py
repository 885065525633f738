"""Captions tell the truth, in words that are one token each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magicapture.paperdoll import identity_from_seed, pose_from_seed, style_from_seed
from magicapture.paperdoll.captions import caption, tone_word, vocabulary
from magicapture.paperdoll.tokenizer import (
    END,
    LENGTH,
    START,
    learn_merges,
    load_tokenizer,
    write_tokenizer,
)
from pretrain.dataset import captions_of, seeds_of


def _parts(seed: int):
    return identity_from_seed(seed), style_from_seed(seed), pose_from_seed(seed)


def test_every_word_is_in_the_vocabulary() -> None:
    words = set(vocabulary())
    for seed in range(300):
        for rng in (None, np.random.default_rng(seed)):
            said = caption(*_parts(seed), rng).replace(",", " ,").split()
            assert set(said) <= words


def test_a_full_caption_names_what_is_there() -> None:
    identity, style, pose = _parts(4)
    identity = replace(identity, glasses="round", beard="goatee", tone=0.9)
    style = replace(style, hair="bob", hair_name="red", medium="sketch")
    said = caption(identity, style, pose)
    for phrase in ("a sketch of", "round glasses", "goatee", "bob red hair", "dark skin"):
        assert phrase in said
    assert "glasses" not in caption(replace(identity, glasses="none"), style, pose)


def test_tones_are_thirds() -> None:
    identity = identity_from_seed(1)
    words = [tone_word(replace(identity, tone=tone)) for tone in (0.0, 0.3, 0.4, 0.6, 0.7, 1.0)]
    assert words == ["pale", "pale", "tan", "tan", "dark", "dark"]


def test_training_captions_repeat_and_vary() -> None:
    assert captions_of(seeds_of(17), 8) == captions_of(seeds_of(17), 8)
    assert len(set(captions_of(seeds_of(17), 8))) > 4
    with pytest.raises(ValueError, match="expected a train seed"):
        seeds_of(1_000_000)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return load_tokenizer(write_tokenizer(folder))


def test_every_word_is_one_token(tokenizer) -> None:
    for word in vocabulary():
        assert len(tokenizer.tokenize(word)) == 1, word


def test_captions_fit_and_frame(tokenizer) -> None:
    for seed in range(300):
        ids = tokenizer(caption(*_parts(seed)))["input_ids"]
        assert len(ids) <= LENGTH
        assert ids[0] == tokenizer.convert_tokens_to_ids(START)
        assert ids[-1] == tokenizer.convert_tokens_to_ids(END) == len(tokenizer) - 1


def test_other_text_is_spelt_not_refused(tokenizer) -> None:
    ids = tokenizer("Zebra über 7!", add_special_tokens=False)["input_ids"]
    assert len(ids) > 4 and tokenizer.convert_tokens_to_ids(END) not in ids


def test_merges_make_words_whole() -> None:
    merges = learn_merges(("red", "grey", "re"))
    symbols = {"".join(pair) for pair in merges}
    assert {"red</w>", "grey</w>", "re</w>"} <= symbols
