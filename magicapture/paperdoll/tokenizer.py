"""CLIP's tokenizer over the captions' words: byte-pair merges learned from the vocabulary itself.

Every caption word is one token; any other text falls apart into letters, so nothing is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from .captions import vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 48  # tokens in a prompt, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def write_tokenizer(folder: Path) -> Path:
    """Writes the tokenizer's files as Stable Diffusion folders hold them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(vocabulary())
    alphabet = byte_symbols()
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(m) for m in merges)]
    tokens += [START, END]
    names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = names | {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
    _write(folder / "vocab.json", json.dumps({token: i for i, token in enumerate(tokens)}))
    _write(folder / "merges.txt", "\n".join(lines))
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2))
    _write(folder / "special_tokens_map.json", json.dumps(names, indent=2))
    return folder


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that `write_tokenizer` wrote."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, CLIPTokenizer)
    return tokenizer


def learn_merges(words: tuple[str, ...]) -> list[Pair]:
    """Byte-pair merges, most frequent pair first, until every word is one token."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[Pair] = []
    while True:
        pairs: Counter[Pair] = Counter()
        for parts in split:
            pairs.update(pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merged(parts, best) for parts in split]


def _merged(parts: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            result.append(parts[i] + parts[i + 1])
            i += 2
        else:
            result.append(parts[i])
            i += 1
    return result


def byte_symbols() -> list[str]:
    """A printable symbol for every byte, in CLIP's order: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
