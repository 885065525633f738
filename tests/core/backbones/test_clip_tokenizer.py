"""CLIP's words, derived from the merges in the package."""

import json

import pytest
from transformers import CLIPTokenizer

from magicapture.backbones.clip_tokenizer import byte_symbols, merges, vocabulary


def test_the_vocabulary_is_as_large_as_clips():
    assert len(merges()) == 48894
    assert len(set(byte_symbols())) == 256
    words = vocabulary(merges())
    assert len(words) == 49408
    assert words["<|startoftext|>"] == 49406
    assert words["<|endoftext|>"] == 49407


def test_known_ids(tokenizer):
    """Ids that every SD 1.5 prompt tool shows."""
    assert tokenizer("a photo of a woman").input_ids == [
        49406, 320, 1125, 539, 320, 2308, 49407,
    ]  # fmt: skip


@pytest.mark.comfyui
def test_it_is_the_tokenizer_comfyui_ships(tokenizer, comfyui_path):
    folder = comfyui_path / "comfy" / "sd1_tokenizer"
    assert vocabulary(merges()) == json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    theirs = CLIPTokenizer.from_pretrained(folder)
    for text in ("Crème brûlée, half-body, 35mm f/1.4!", "日本語 👩‍🎤", " the the's  x"):
        assert tokenizer(text).input_ids == theirs(text).input_ids
