"""CLIP's tokenizer without a download: its byte-pair merges come with the package.

`clip_bpe/merges.txt` holds the 48,894 merges that openai/CLIP (MIT, see `clip_bpe/LICENSE.txt`)
uses of its `bpe_simple_vocab_16e6.txt.gz`. The vocabulary follows from them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

START = "<|startoftext|>"
END = "<|endoftext|>"
LENGTH = 77


def merges() -> list[str]:
    """The merges in order, each as its two halves with a space between."""
    text = (files(__package__) / "clip_bpe" / "merges.txt").read_text(encoding="utf-8")
    return text.splitlines()


def byte_symbols() -> list[str]:
    """The 256 symbols that stand for bytes, in the vocabulary's order.

    Byte-level BPE shows printable Latin-1 bytes as themselves, first; the others follow, as the
    characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(0x100 + n) for n in range(others)]


def vocabulary(pairs: list[str]) -> dict[str, int]:
    """Symbol -> id: the bytes, the bytes that end a word, the merged pairs, start and end."""
    symbols = byte_symbols()
    words = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *(pair.replace(" ", "") for pair in pairs),
        START,
        END,
    ]
    return {word: index for index, word in enumerate(words)}


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer as a folder that transformers' `CLIPTokenizer.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = merges()
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    for name, data in (
        ("vocab.json", vocabulary(pairs)),
        ("special_tokens_map.json", special),
        ("tokenizer_config.json", config),
    ):
        (folder / name).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
